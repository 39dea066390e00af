"""Caps and budgets that fill up: told at each of their `alert_at`, and budgets also when they will not last.

Looked at on a thread of its own, some time after calls have settled, in the ledger: so it counts what every process
spends, and costs a call nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from .alerts import Lane
from .clock import from_micros
from .contributors import contributors
from .errors import LedgerError
from .forecasts import forecast
from .money import format_usd, to_usd
from .types import Alert, Attribution, Budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .alerts import Alerts
    from .forecasts import Forecast
    from .types import Bucket, Cap, Ledger

__all__ = ["Thresholds", "declaration"]

_log = logging.getLogger("maestro")

# How often the ledger is looked at, at most; and, where that takes long, so many times as seldom.
_EVERY_S = 0.5
_TIMES = 50
# A budget's forecast is told only if it is missed by so much.
_MISSED_BY = 1.1
_HOUR_US = 3_600_000_000


class Thresholds:
    """Watches the buckets of declared caps and budgets.

    Args:
        limits: The caps and budgets.
        time_zone: Where windows begin.
        ledger: Where their buckets are.
        alerts: Where what is found is told.
    """

    def __init__(
        self, limits: Sequence[Cap | Budget], time_zone: str, ledger: Ledger, alerts: Alerts
    ) -> None:
        self._limits = [(limit, limit.meter(time_zone)) for limit in limits if limit.alert_at]
        self._ledger = ledger
        self._alerts = alerts
        self._lane: Lane[None] = Lane("thresholds", lambda _: self._wait_and_look(), most=1)
        self._closing = threading.Event()
        self._next_s = 0.0

    def touch(self) -> None:
        """Something was spent: look, soon."""
        if self._limits and not self._lane.waiting:
            self._lane.put(None)

    def flush(self, until_s: float) -> None:
        """Look now, if there is something to look at."""
        self._closing.set()
        self._lane.join(until_s)
        self._closing.clear()

    def close(self, until_s: float) -> None:
        """Look once more, if there is something to look at."""
        self.flush(until_s)
        self._lane.close()

    def look(self) -> None:
        """Tell of every threshold that was reached and not told yet."""
        now_us = self._ledger.now_us()
        for limit, meter in self._limits:
            for bucket in self._ledger.buckets(meter):
                for alert in self._found(limit, bucket, now_us):
                    self._alerts.tell(alert)

    def _wait_and_look(self) -> None:
        self._closing.wait(max(0.0, self._next_s - time.monotonic()))
        began_s = time.monotonic()
        try:
            self.look()
        except LedgerError as error:
            _log.warning("caps and budgets could not be looked at: %s", error)
        took_s = time.monotonic() - began_s
        self._next_s = began_s + max(_EVERY_S, _TIMES * took_s)

    def _found(self, limit: Cap | Budget, bucket: Bucket, now_us: int) -> Iterator[Alert]:
        used = bucket.spent + bucket.presumed
        reached = [ratio for ratio in limit.alert_at if used >= ratio * limit.limit_nanos]
        # All are claimed, but only the highest is told: of a budget that is spent nobody needs to know that it is half.
        for ratio in reached:
            key = _key(bucket, f"at {ratio:g}")
            if not self._alerts.knows(key):
                alert = self._threshold(limit, bucket, key, now_us)
                last = ratio == reached[-1]
                if self._alerts.claim(alert, told=last) and last:
                    yield alert
        if isinstance(limit, Budget) and used < limit.limit_nanos:
            coming = forecast(used, limit.limit_nanos, bucket.window, now_us)
            if coming and coming.projected_nanos > _MISSED_BY * limit.limit_nanos:
                key = _key(bucket, "forecast")
                if not self._alerts.knows(key):
                    alert = self._forecast(limit, bucket, coming, key)
                    if self._alerts.claim(alert):
                        yield alert

    def _threshold(self, limit: Cap | Budget, bucket: Bucket, key: str, now_us: int) -> Alert:
        kind, used = type(limit).__name__.lower(), bucket.spent + bucket.presumed
        percent = 100 * used // limit.limit_nanos if limit.limit_nanos else 100
        coming = forecast(used, limit.limit_nanos, bucket.window, now_us)
        pace = f"; {coming.elapsed:.0%} of the {limit.every} has passed" if coming else ""
        if coming and coming.reached_us:
            pace += f", and at this pace it is reached on {from_micros(coming.reached_us):%d %B at %H:%M} UTC"
        elif coming:
            pace += f", and at this pace it ends at {format_usd(coming.projected_nanos)}"
        return self._alert(
            "threshold",
            limit,
            bucket,
            key,
            excess=max(0, used - limit.limit_nanos),
            projected=coming.projected_nanos if coming else None,
            text=f"threshold: {bucket.label} has spent {format_usd(used)}, {percent} % of its {kind} of"
            f" {format_usd(limit.limit_nanos)}{pace}",
        )

    def _forecast(self, limit: Budget, bucket: Bucket, coming: Forecast, key: str) -> Alert:
        used = bucket.spent + bucket.presumed
        reached = f" on {from_micros(coming.reached_us):%d %B at %H:%M} UTC" if coming.reached_us else ""
        return self._alert(
            "forecast",
            limit,
            bucket,
            key,
            excess=0,
            projected=coming.projected_nanos,
            text=f"forecast: {bucket.label} reaches its budget of {format_usd(limit.limit_nanos)}{reached} at this pace:"
            f" {format_usd(used)} spent after {coming.elapsed:.0%} of the {limit.every},"
            f" {format_usd(coming.projected_nanos)} at its end",
        )

    def _alert(
        self,
        kind: str,
        limit: Cap | Budget,
        bucket: Bucket,
        key: str,
        *,
        excess: int,
        projected: int | None,
        text: str,
    ) -> Alert:
        where = dict(zip(bucket.meter.per, bucket.values, strict=True)) | dict(bucket.meter.where)
        window = bucket.window
        now_us = self._ledger.now_us()
        most = contributors(self._ledger, where, max(window.start_us if window else 0, now_us - _HOUR_US))
        return Alert(
            kind=kind,
            scope=bucket.label,
            since=from_micros(window.start_us if window else now_us),
            excess_usd=to_usd(excess),
            projected_usd=None if projected is None else to_usd(projected),
            run_id=most.run,
            model=most.model,
            tool=most.tool,
            stop=declaration(limit),
            text=text,
            key=key,
            attribution=Attribution(where),
        )


def declaration(limit: Cap | Budget) -> str:
    """Return the line that declares a cap as high as this limit, and for the same calls."""
    per = limit.per[0] if len(limit.per) == 1 else limit.per
    parts = [f'"{limit.limit:f}"', f"per={_quoted(per)}" if per else ""]
    parts += [
        f"where={_quoted(dict(limit.where))}" if limit.where else "",
        f'every="{limit.every}"' if limit.every else "",
    ]
    return f"Cap({', '.join(part for part in parts if part)})"


def _quoted(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_quoted, value))})"
    return json.dumps(value, ensure_ascii=False)


def _key(bucket: Bucket, what: str) -> str:
    window = f" {bucket.window.start_us}" if bucket.window else ""
    return f"{bucket.meter.id} {json.dumps(bucket.values)}{window} {what}"
