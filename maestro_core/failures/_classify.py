"""From an exception to what it means."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from ._evidence import Evidence, collect
from ._kinds import TREATMENTS, Breaker, FailureKind, Treatment
from ._signs import DEFINITE, NAMES, NOT_SENT, PHRASES, STATUSES, UNBILLED, USUAL

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Failure", "classify", "pause_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a failed call means.

    Attributes:
        kind: What happened; `TREATMENTS` says what is done about it.
        status: The HTTP status, or None where there was no answer.
        code: The provider's own code that told the kind, in lower case, or "".
        retry_after_s: For how many seconds the provider asks to be left alone, or None.
        unbilled: Why the call was provably not billed, or None if it may have been.
        asked_to_retry: What the provider's `x-should-retry` header says, or None.
    """

    kind: FailureKind
    status: int | None = None
    code: str = ""
    retry_after_s: float | None = None
    unbilled: str | None = None
    asked_to_retry: bool | None = None

    @property
    def treatment(self) -> Treatment:
        """What is done about this kind of failure."""
        return TREATMENTS[self.kind]

    @property
    def fails_over(self) -> bool:
        """Whether another endpoint is asked."""
        return self.treatment.fails_over

    @property
    def retries(self) -> bool:
        """Whether the same endpoint may answer if it is asked again; the provider's own word on it counts most."""
        return self.treatment.retries if self.asked_to_retry is None else self.asked_to_retry

    @property
    def callers_fault(self) -> bool:
        """Whether the request, not the endpoint, is to blame."""
        return self.treatment.callers_fault

    @property
    def breaker(self) -> Breaker:
        """What it does to the endpoint's breaker; a provider that says when to come back opens it, unless it is ignored."""
        treatment = self.treatment
        waits = self.retry_after_s is not None and treatment.breaker == "counts"
        return "opens" if waits else treatment.breaker

    @property
    def open_s(self) -> float:
        """For how many seconds the breaker opens at once: as the provider asks, else as usual for the kind."""
        if self.breaker != "opens":
            return 0.0
        return self.retry_after_s if self.retry_after_s is not None else self.treatment.open_s


def classify(
    error: BaseException,
    *,
    streamed: bool = False,
    now_s: float | None = None,
    more: Mapping[str, FailureKind] | None = None,
) -> Failure:
    """Return what an exception of a model call means, whatever library raised it.

    Known are the SDKs of OpenAI, Anthropic, Google, AWS and those made alike (Groq, Fireworks, Together, Mistral, Cohere,
    OpenRouter, Ollama), the HTTP clients below them (httpx, requests, urllib3, aiohttp), and LangChain's wrappers.

    Args:
        error: What the model raised.
        streamed: Whether any output had arrived; such a call was billed, whatever it ended in.
        now_s: Seconds since 1970 UTC, for a Retry-After that is a date; the answer's own Date header comes first.
        more: Kinds for further codes or names of exceptions; they go before Maestro's own.
    """
    seen = collect(error)
    kind, code = _kind(seen, more or {})
    return Failure(
        kind=kind,
        status=seen.status,
        code=code,
        retry_after_s=_retry_after_s(seen, now_s),
        unbilled=None if streamed else _unbilled(seen),
        asked_to_retry={"true": True, "false": False}.get(seen.headers.get("x-should-retry", "")),
    )


_LONGEST_PAUSE_S = 60.0


def pause_s(failure: Failure, *, attempt: int) -> float:
    """Return how long to wait before asking the same endpoint again: what it asks for, else 0.5 s doubling up to 8 s.

    Args:
        failure: The last one.
        attempt: How many attempts failed before it.
    """
    asked = failure.retry_after_s
    if asked is not None and asked <= _LONGEST_PAUSE_S:
        return asked
    return min(8.0, 0.5 * float(2**attempt)) * random.uniform(0.75, 1)  # noqa: S311 - spreads retries, guards nothing


# Told by the exception alone; its text and codes then speak of something else.
_BY_NAME = frozenset({"cap", "cancelled", "context_overflow", "content_policy"})


def _kind(seen: Evidence, more: Mapping[str, FailureKind]) -> tuple[FailureKind, str]:
    """Return the kind, and the code that told it: what is most specific speaks first."""
    own = {sign.lower(): kind for sign, kind in more.items()}
    if found := _first(own, (*seen.codes, *(name.lower() for name in seen.names))):
        return found
    named = _first(NAMES, seen.names)
    if named and named[0] in _BY_NAME:
        return named[0], ""
    if found := _first(DEFINITE, seen.codes):
        return found
    said = _daily_quota(seen) or next((PHRASES[phrase] for phrase in PHRASES if phrase in seen.text), None)
    if said:
        return said, seen.codes[0] if seen.codes else ""
    usual = _first(USUAL, seen.codes)
    if by_status := _by_status(seen.status):
        return by_status, usual[1] if usual else ""
    return usual or (named[0] if named else "unknown", "")


def _first(table: Mapping[str, FailureKind], signs: Iterable[str]) -> tuple[FailureKind, str] | None:
    return next(((table[sign], sign) for sign in signs if sign in table), None)


def _by_status(status: int | None) -> FailureKind | None:
    if status is None or status < 400:  # noqa: PLR2004 - a stream that failed after it had begun well
        return None
    return STATUSES.get(status) or ("bad_request" if status < 500 else "server_error")  # noqa: PLR2004 - server errors


def _daily_quota(seen: Evidence) -> FailureKind | None:
    """Return "quota" where Google names a quota of the day; its RetryInfo then speaks of seconds all the same."""
    for detail in seen.details:
        violations = (
            detail.get("violations") if isinstance(detail, Mapping) else getattr(detail, "violations", None)
        )
        for violation in violations if isinstance(violations, list | tuple) else ():
            if isinstance(violation, Mapping) and "PerDay" in str(violation.get("quotaId")):
                return "quota"
    return None


def _unbilled(seen: Evidence) -> str | None:
    if seen.status in UNBILLED:
        return f"HTTP {seen.status}"
    return next((NOT_SENT[name] for name in seen.names if name in NOT_SENT), None)


# -- Retry-After ------------------------------------------------------------------------------------------------------

_TRY_AGAIN = re.compile(
    r"(?:try again|retry) (?:in|after) (?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?) ?(ms|s|seconds?)\b)?"
)


def _retry_after_s(seen: Evidence, now_s: float | None) -> float | None:
    headers = seen.headers
    found = _number(headers.get("retry-after-ms"), 1_000)
    if found is None:
        found = _number(headers.get("retry-after"), 1)
    if found is None:
        found = _until(headers.get("retry-after"), headers.get("date"), now_s)
    if found is None:
        found = next((wait for detail in seen.details if (wait := _retry_info(detail)) is not None), None)
    return _from_text(seen.text) if found is None else found


def _number(text: str | None, divisor: int) -> float | None:
    try:
        found = float(text or "") / divisor
    except ValueError:
        return None
    return found if 0 <= found < float("inf") else None


def _until(date: str | None, served: str | None, now_s: float | None) -> float | None:
    then = _moment(date)
    now = _moment(served)
    if now is None:
        now = now_s
    return None if then is None or now is None else max(0.0, then - now)


def _moment(date: str | None) -> float | None:
    try:
        found = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _retry_info(detail: Any) -> float | None:
    """Return the delay in a google.rpc.RetryInfo, as JSON or as a message."""
    if isinstance(detail, Mapping):
        delay = detail.get("retryDelay")
        return _number(delay.removesuffix("s"), 1) if isinstance(delay, str) else None
    delay = getattr(detail, "retry_delay", None)
    seconds, nanos = getattr(delay, "seconds", None), getattr(delay, "nanos", 0)
    return seconds + nanos / 1e9 if isinstance(seconds, int) else None


def _from_text(text: str) -> float | None:
    """Return what "please try again in 6m0.5s" asks for: OpenAI and Azure say it where they send no header."""
    match = _TRY_AGAIN.search(text)
    if match is None or not any(match.groups()[:3]):
        return None
    hours, minutes, seconds, unit = match.groups()
    last = float(seconds or 0) / (1_000 if unit == "ms" else 1)
    return int(hours or 0) * 3_600 + int(minutes or 0) * 60 + last
