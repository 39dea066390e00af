"""The places where alerts are told: a log, a webhook, OpenTelemetry."""

from __future__ import annotations

import json
import logging
import random
import threading
from hashlib import blake2b
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from maestro_core.telemetry.names import ALERT_EVENT
from maestro_core.telemetry.spans import whom

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AttributeValue

    from maestro_core.telemetry.events import Events
    from maestro_core.types import Alert

__all__ = ["Undelivered", "Webhook", "emit_event", "log"]

_log = logging.getLogger("maestro")

_ATTEMPTS = 5
_TIMEOUT_S = 3.0
_LONGEST_PAUSE_S = 8.0
_TOO_MANY, _SERVER_ERROR, _TIMED_OUT = 429, 500, 408


class Undelivered(Exception):
    """A webhook did not take an alert; the message says why, without the address, which may hold a secret."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        # A POST that is redirected arrives as a GET without its body: better an error that names the status.
        return None


class Webhook:
    """Posts alerts to one address as JSON, with a `text` besides, which is what Slack shows.

    Args:
        url: The address. Only its host appears in messages, because the rest may be a secret.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.host = urlsplit(url).hostname or "?"
        self._opener = build_opener(_NoRedirects())
        self._closing = threading.Event()

    def hurry(self) -> None:
        """Do not pause between attempts any more."""
        self._closing.set()

    def post(self, alert: Alert) -> None:
        """Deliver an alert, in at most five attempts; errors of the network, 408, 429 and 5xx are tried again.

        Raises:
            Undelivered: If it was not taken.
        """
        body = json.dumps({**alert.to_dict(), "text": str(alert)}).encode()
        for attempt in range(_ATTEMPTS):
            try:
                return self._send(alert.key, body)
            except HTTPError as error:
                with error:
                    if error.code not in (_TIMED_OUT, _TOO_MANY) and error.code < _SERVER_ERROR:
                        raise Undelivered(f"{self.host} answered {error.code}") from None
                    why, asked = f"it answered {error.code}", error.headers.get("Retry-After")
            except (OSError, HTTPException) as error:
                why, asked = str(getattr(error, "reason", error)) or type(error).__name__, None
            if attempt + 1 < _ATTEMPTS:
                self._closing.wait(_pause_s(attempt, asked))
        raise Undelivered(f"{self.host}: {why}, {_ATTEMPTS} times")

    def _send(self, key: str, body: bytes) -> None:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "maestro",
            "Idempotency-Key": _token(key),
        }
        request = Request(self._url, body, headers, method="POST")  # noqa: S310 - settings admit http and https only
        with self._opener.open(request, timeout=_TIMEOUT_S) as response:
            response.read(1)


def log(alert: Alert) -> None:
    """Write an alert to the logger `maestro`, as a warning with its fields."""
    _log.warning("%s", alert, extra={"maestro_alert": alert.to_dict()})


def emit_event(alert: Alert, events: Events) -> bool:
    """Emit the OpenTelemetry event `maestro.alert`; return whether anybody listens."""
    return bool(events.emit(ALERT_EVENT, _attributes(alert), body=str(alert)))


def _token(key: str) -> str:
    # A header holds neither line breaks nor what is beyond Latin-1, and scopes may have both.
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _attributes(alert: Alert) -> Mapping[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        f"maestro.alert.{name}": str(value) for name, value in alert.to_dict().items() if value
    }
    return found | whom(alert.attribution)


def _pause_s(attempt: int, asked: str | None) -> float:
    if asked and asked.isdecimal():
        return min(_LONGEST_PAUSE_S, float(asked))
    return min(_LONGEST_PAUSE_S, 0.25 * float(2**attempt)) * random.uniform(0.5, 1)  # noqa: S311 - spreads attempts
