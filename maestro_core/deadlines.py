"""How long an endpoint may keep a call that another one would serve, and work that is left when that time is over.

Clients wait ten minutes for an answer by themselves. What was promised is a 95th percentile, and latencies are about
log-normal: with the spread that is usual for providers (0.5), one answer in ten thousand takes three times as long; with
twice that spread, one in three hundred.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .types import Candidate, Decision

__all__ = ["PROBE_TIMES", "TIMES", "awithin", "deadline_s", "within"]

_T = TypeVar("_T")

TIMES = 3
# A probe asks an endpoint that failed lately: who is its caller shall not wait long for a bad guess. One answer of a
# sound endpoint in a hundred and forty takes so much longer (at the usual spread).
PROBE_TIMES = 1.5
# A busy machine may need so long for itself.
_LEAST_S = 1.0


def deadline_s(decision: Decision, *, streamed: bool, probe: bool) -> float | None:
    """Return how long the chosen endpoint may take, of a stream until its first token; None if as long as it wants.

    Three times what the SLA promises, or what is expected of the endpoint, if that is more: who is late only as ever is
    not cut off. A probe of an endpoint that failed lately has half of that; without such an SLA only a probe is limited.
    The last endpoint that may serve the call never is.

    Args:
        decision: Who else may serve it.
        streamed: Whether the caller reads a stream.
        probe: Whether this is the one call that a half-open breaker lets through.
    """
    if len(decision.ranking) < 2:  # noqa: PLR2004 - the chosen one, and another
        return None
    promised = decision.sla.latency_ms_p95
    if streamed:
        promised = decision.sla.ttft_ms_p95 or promised
    seen = {each.name: _expected_ms(each, streamed=streamed) for each in decision.candidates}
    expected = seen[decision.chosen]
    if promised is None:
        if not probe:
            return None
        expected = expected or max((seen[name] or 0 for name in decision.ranking), default=0)
    longest = max(promised or 0, expected or 0)
    return max(_LEAST_S, (PROBE_TIMES if probe else TIMES) * longest / 1_000) if longest else None


def _expected_ms(candidate: Candidate, *, streamed: bool) -> float | None:
    return (candidate.ttft_ms_p95 if streamed else None) or candidate.latency_ms_p95


def within(limit_s: float | None, work: Callable[[], _T]) -> _T:
    """Return what the work returns.

    Nothing can stop a thread that waits for an answer, so with a limit the work has a thread of its own, in the same
    context: it is left behind when the time is over, ends as its client gives up, and does not keep the process alive.

    Raises:
        TimeoutError: If it takes longer than the limit in seconds; whatever the work raises else.
    """
    if limit_s is None:
        return work()
    found: Future[_T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            found.set_result(context.run(work))
        except BaseException as error:  # noqa: BLE001 - it is raised where the work is awaited
            found.set_exception(error)

    Thread(target=run, name="maestro-attempt", daemon=True).start()
    try:
        return found.result(limit_s)
    except TimeoutError:
        if found.done():
            raise
        raise TimeoutError(_said(limit_s)) from None


async def awithin(limit_s: float | None, work: Awaitable[_T]) -> _T:
    """As `within`; the work is cancelled."""
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(_said(limit_s or 0)) from None
        raise


def _said(limit_s: float) -> str:
    return f"no answer within {limit_s:.1f} s, and another endpoint may serve the call"
