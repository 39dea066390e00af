"""From an incident to everybody who wants to know: claimed once in the ledger, then told in every place."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from maestro_core import plugins
from maestro_core.clock import from_micros
from maestro_core.errors import LedgerError
from maestro_core.forks import fork_safe_lock
from maestro_core.telemetry.events import Events
from maestro_core.types import Alert

from . import sinks
from .lanes import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

    from pluggy import PluginManager

    from maestro_core.routes import AlertSettings
    from maestro_core.types import Ledger

__all__ = ["Alerts"]

_log = logging.getLogger("maestro")

_CLOSE_S = 5.0
_MOST_KNOWN = 10_000


class Alerts:
    """Tells each incident once, across all processes on the ledger; never on the time of whoever reports it.

    Each webhook has a queue and a thread of its own, so that one that is slow or broken delays no other. What does not
    fit into a queue of 1,000 is lost, and the loss is logged; the ledger has every alert all the same.

    Args:
        settings: Where alerts go.
        ledger: Where they are claimed and listed.
        manager: The plugins, whose `maestro_alert` is told, too.
        events: Where OpenTelemetry is told; the user's logger provider if None.
    """

    def __init__(
        self,
        settings: AlertSettings,
        ledger: Ledger,
        manager: PluginManager,
        *,
        events: Events | None = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._plugins = manager
        self._events = events or Events(lambda: None)
        self._intake: Lane[Callable[[], Alert | None]] = Lane("alerts", self._take)
        self._webhooks: dict[str, tuple[sinks.Webhook, Lane[Alert]]] = {}
        self._known: dict[str, None] = {}
        self._lock = fork_safe_lock()

    def report(self, find: Callable[[], Alert | None]) -> None:
        """Hand over an incident, without waiting.

        Args:
            find: Returns the alert, or None if there is nothing to tell after all; called on another thread, so it may
                ask the ledger.
        """
        self._intake.put(find)

    def claim(self, alert: Alert, *, told: bool = True) -> bool:
        """Write an alert down; return whether nobody has told this incident before.

        Args:
            alert: The alert.
            told: Whether it is to be told; otherwise nobody ever will.
        """
        with self._lock:
            if alert.key in self._known:
                return False
            self._known[alert.key] = None
            while len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]
        body = {**alert.to_dict(), "text": str(alert), "attribution": dict(alert.attribution.dimensions)}
        try:
            return self._ledger.keep(alert.key, "alert" if told else "passed", body)
        except LedgerError:
            _log.exception(
                "an alert could not be written down; it is told all the same, perhaps by others, too"
            )
            return True

    def knows(self, key: str) -> bool:
        """Return whether this process has seen an incident before, without asking the ledger."""
        return key in self._known

    def tell(self, alert: Alert) -> None:
        """Tell an alert in every place that wants it, without waiting for webhooks."""
        if self._settings.log:
            sinks.log(alert)
        for url in self._settings.webhooks(alert):
            self._lane(url).put(alert)
        sinks.emit_event(alert, self._events)
        plugins.observe(self._plugins, "maestro_alert", alert=alert)

    def test(self, now_us: int) -> list[tuple[str, str]]:
        """Tell a test alert in every place, whatever the routes; return each place with its error, or an empty text."""
        alert = Alert(
            kind="test",
            scope="everything",
            since=from_micros(now_us),
            stop='Cap("20", every="day")',
            text="test: this is how an alert of Maestro looks; nothing is wrong",
            key=f"test {now_us}",
        )
        outcomes = [("log", "")] if self._settings.log else []
        if self._settings.log:
            sinks.log(alert)
        for url in self._settings.addresses():
            webhook = sinks.Webhook(url)
            error = ""
            try:
                webhook.post(alert)
            except sinks.Undelivered as failure:
                error = str(failure)
            outcomes.append((f"webhook {webhook.host}", error))
        if sinks.emit_event(alert, self._events):
            outcomes.append(("OpenTelemetry event", ""))
        plugins.observe(self._plugins, "maestro_alert", alert=alert)
        listeners = len(self._plugins.hook.maestro_alert.get_hookimpls())
        return [*outcomes, *([(f"{listeners} plugins", "")] if listeners else [])]

    def flush(self, timeout_s: float = _CLOSE_S) -> bool:
        """Wait until everything reported so far is delivered or given up; return whether it was, in time."""
        until_s = time.monotonic() + timeout_s
        lanes = [self._intake.join(until_s)]
        return all([*lanes, *(lane.join(until_s) for _, lane in list(self._webhooks.values()))])

    def close(self) -> None:
        """Deliver what is pending, for at most five seconds; the rest is logged."""
        until_s = time.monotonic() + _CLOSE_S
        self._intake.join(until_s)
        for webhook, lane in self._webhooks.values():
            webhook.hurry()
            lane.join(until_s)
        left = self._intake.close() + sum(lane.close() for _, lane in self._webhooks.values())
        if left:
            _log.warning(
                "%s alerts were not delivered within %.0f s; `maestro alerts` has those that were claimed",
                left,
                _CLOSE_S,
            )

    def _take(self, find: Callable[[], Alert | None]) -> None:
        alert = find()
        if alert is not None and self.claim(alert):
            self.tell(alert)

    def _lane(self, url: str) -> Lane[Alert]:
        if url not in self._webhooks:
            webhook = sinks.Webhook(url)
            self._webhooks[url] = (
                webhook,
                Lane(f"webhook {webhook.host}", lambda alert: _post(webhook, alert)),
            )
        return self._webhooks[url][1]


def _post(webhook: sinks.Webhook, alert: Alert) -> None:
    try:
        webhook.post(alert)
    except sinks.Undelivered as error:
        _log.warning("an alert was not delivered: %s. It was: %s", error, alert)
