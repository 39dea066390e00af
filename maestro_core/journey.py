"""One call's way through the endpoints: who is asked, what is held for it, and what happens when it fails.

The adapter only sends. It asks for an attempt (`next`, `anext`), sends inside `sending`, and says how it ended
(`answered`, `failed`, `left`). No attempt waits while an endpoint that has not been tried may be asked.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .attempts import Attempt, Failed, Money
from .cachestate import Seen, caches_by_itself
from .errors import CapExceeded, EndpointsExhausted, NoEndpoint, PriceNotFound
from .failures import classify, pause_s
from .health import LET_IN_S
from .learned import Outcome
from .prices.caching import asked_writes
from .routing import decide
from .types import new_key

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from .doors import Terms
    from .router import Ask, Router
    from .types import Call, Decision, Reservation
    from .usage import Usage

__all__ = ["Journey"]

# All pauses of one call together; who has to wait longer is told so.
_PATIENCE_S = 60.0
# How often to look whether another call's probe has ended.
_PROBED_S = 0.2
_FIVE_MINUTES_S, _HOUR_S = 300.0, 3_600.0


class Journey:
    """One call, from the first decision to an answer or to the last error.

    Args:
        router: The endpoints.
        ask: The call.
    """

    def __init__(self, router: Router, ask: Ask) -> None:
        self._router = router
        self._maestro = router.maestro
        self._ask = ask
        self._measured = router.measure(ask)
        self._terms: Terms = router.maestro.doors.asked()
        self._failed: list[Failed] = []
        self._tried: dict[str, Failed] = {}
        self._rounds = 0
        self._most_rounds = max(each.retries for each in router.facts.values())
        self._patience_s = _PATIENCE_S

    # -- the adapter's verbs --------------------------------------------------------------------------------------

    def next(self) -> Attempt:
        """Return the next attempt, its money held; waits, for money and for endpoints, only where nothing else is left.

        Raises:
            NoEndpoint: If no endpoint may serve the call, and none was tried.
            EndpointsExhausted: If all that might have served it failed.
            CapExceeded: If a cap admits it at no endpoint.
            PriceNotFound, LedgerUnavailable, MaestroError: As `Maestro.reserve`.
        """
        steps = self._steps()
        held: Reservation | None = None
        while True:
            try:
                wish = steps.send(held)
            except StopIteration as done:
                found: Attempt = done.value
                return found
            held = None
            if isinstance(wish, float):
                time.sleep(wish)
            else:
                terms = self._terms
                held = self._maestro.doors.reserve(
                    wish, fits=self._fits(wish), keeps_last=terms.keeps_last, last=terms.last
                )

    async def anext(self) -> Attempt:
        """As `next`, without blocking the event loop."""
        steps = self._steps()
        held: Reservation | None = None
        while True:
            try:
                wish = steps.send(held)
            except StopIteration as done:
                found: Attempt = done.value
                return found
            held = None
            if isinstance(wish, float):
                await asyncio.sleep(wish)
            else:
                terms = self._terms
                held = await self._maestro.doors.areserve(
                    wish, fits=self._fits(wish), keeps_last=terms.keeps_last, last=terms.last
                )

    @contextmanager
    def sending(self, attempt: Attempt, limit: Mapping[str, int] | None = None) -> Iterator[None]:
        """The request is sent inside the block; of a stream, its first part is awaited there.

        Args:
            attempt: From `next`.
            limit: The call arguments that set its fitted output limit.
        """
        doors, runs = self._maestro.doors, self._maestro.runs
        where = attempt.reservation.call.attribution
        with doors.offer(attempt.reservation, limit) as offer, runs.around(where):
            attempt.offer = offer
            if self._router.baseline:
                offer.tells = lambda usage: self._compared(attempt, usage)
            yield

    def began(self, attempt: Attempt) -> None:
        """The first token of a stream has arrived."""
        if attempt.first_s is None:
            attempt.first_s = self._router.now_s()

    def failed(
        self, attempt: Attempt, error: BaseException, *, streamed: bool = False, resumes: bool = False
    ) -> None:
        """An attempt failed. Returns if another one may follow.

        Args:
            attempt: From `next`.
            error: What the framework raised.
            streamed: Whether the caller has seen some of the answer already.
            resumes: Whether that can be continued elsewhere.

        Raises:
            BaseException: The error itself, if no other endpoint could do better, or the caller has seen output.
        """
        failure, now_s = classify(error, streamed=streamed), self._router.now_s()
        found = Failed(attempt.name, error, failure, round((now_s - attempt.began_s) * 1000))
        self._failed.append(found)
        self._tried[attempt.name] = found
        tokens = next(each.input_tokens for each in attempt.decision.candidates if each.name == attempt.name)
        learned = self._router.learned
        with learned.lock:
            learned.failed(
                attempt.facts.key,
                failure,
                now_s,
                probe=attempt.probe,
                input_tokens=tokens,
                alone=len(self._router.facts) == 1,
            )
        if (streamed and not resumes) or not failure.fails_over:
            raise error

    def left(self, attempt: Attempt) -> None:
        """The caller gave an attempt up: that says nothing about the endpoint."""
        learned = self._router.learned
        with learned.lock:
            learned.known(attempt.facts.key).breaker.leave(probe=attempt.probe)

    def answered(self, attempt: Attempt) -> dict[str, Any]:
        """An attempt was answered: learn from it, and return the decision as the framework's reply shall carry it.

        JSON values: the decision's, and `run`, `cost_nanos`, `latency_ms`, `ttft_ms`, `fitted_output_tokens`,
        `attempts` (those that failed before), `baseline` (what the call would have cost there), as far as they are known.
        """
        now_s, offer = self._router.now_s(), attempt.offer
        record, usage = (offer.record, offer.usage) if offer else (None, None)
        latency_ms = (now_s - attempt.began_s) * 1000
        ttft_ms = None if attempt.first_s is None else (attempt.first_s - attempt.began_s) * 1000
        if offer is not None and record is not None:  # else it never left: a framework's cache answered
            self._learn(attempt, usage, latency_ms, ttft_ms, now_s)
        else:
            self.left(attempt)
        said: dict[str, Any] = {
            **attempt.decision.to_dict(),
            "run": attempt.reservation.call.attribution.dimensions.get("run"),
            "cost_nanos": record.cost_nanos if record else 0,
            "latency_ms": round(latency_ms),
            "ttft_ms": None if ttft_ms is None else round(ttft_ms),
            "fitted_output_tokens": attempt.fitted_output_tokens,
            "attempts": [each.to_dict() for each in self._failed],
            "baseline": attempt.baseline,
        }
        return {name: value for name, value in said.items() if value is not None and value != []}

    def resumed(self, history: Sequence[Mapping[str, object]]) -> Journey:
        """Return the way on, for an answer that broke off: the same call with a longer conversation."""
        found = Journey(self._router, replace(self._ask, history=history))
        found._failed, found._tried = self._failed, self._tried
        found._rounds, found._patience_s = self._rounds, self._patience_s
        return found

    def cut(self, attempt: Attempt, partial: str) -> CapExceeded | None:
        """Return the error for an answer that ended at its limit, if that is no answer; None if it is.

        Args:
            attempt: From `next`.
            partial: The answer.
        """
        if attempt.fitted_output_tokens is None or not self._terms.whole:
            return None
        return self._maestro.admission.cut(attempt.reservation, partial)

    # -- the way --------------------------------------------------------------------------------------------------

    def _steps(self) -> Generator[float | Call, Reservation | None, Attempt]:
        """Yield how long to pause, or what to reserve with patience; return the attempt."""
        while True:
            tried = {name: each.failure.kind for name, each in self._tried.items()}
            decision = self._router.decide(self._ask, self._measured, tried=tried)
            if not decision.ranking:
                yield self._pause_s(decision)
                continue
            money = Money()
            reservation = self._reserved(decision, money)
            if reservation is None:
                least = money.least(decision.ranking)
                reservation = yield self._call(least)
                assert reservation is not None  # noqa: S101 - whoever drives this sends it
                money.short.pop(least, None)
            attempt = self._entered(reservation, _with_budget(decision, money))
            if attempt is not None:
                return attempt

    def _reserved(self, decision: Decision, money: Money) -> Reservation | None:
        """Return what is held for the best endpoint that fits the caps as they are, or None if none does."""
        if len(decision.ranking) == 1:
            return None  # there is no other: it may wait, or be cut
        for name in decision.ranking:
            fits = self._router.facts[name].fits
            try:
                outcome = self._maestro.doors.ask(self._call(name), fits=fits, terms=self._terms)
            except PriceNotFound:
                money.short[name] = "no price"
                continue
            if not isinstance(outcome, CapExceeded):
                return outcome
            money.refused(name, outcome)
        return None

    def _entered(self, reservation: Reservation, decision: Decision) -> Attempt | None:
        """Return the attempt, or None if another call has become the endpoint's probe meanwhile."""
        facts, learned = self._router.facts[reservation.call.endpoint], self._router.learned
        now_s = self._router.now_s()
        with learned.lock:
            probe = learned.known(facts.key).breaker.enter(now_s, let_in_s=_let_in_s(decision, facts.name))
        if probe is None:
            self._maestro.release(reservation, "not sent")
            return None
        detail = {"decision": decision.to_dict()}
        if self._failed:
            detail["attempts"] = [each.to_dict() for each in self._failed]  # type: ignore[assignment]
        return Attempt(facts, replace(reservation, detail=detail), decision, probe, now_s)

    def _pause_s(self, decision: Decision) -> float:
        """Return how long to wait before endpoints are asked again, if that can help.

        Raises:
            NoEndpoint: If it cannot, and none was tried.
            EndpointsExhausted: If it cannot, and some were.
        """
        now_s, learned = self._router.now_s(), self._router.learned
        pauses: dict[str, float] = {}
        with learned.lock:
            for each in decision.candidates:
                breaker = learned.known(self._router.facts[each.name].key).breaker
                own = self._tried.get(each.name)
                rest_s = breaker.opens_at_s(now_s) - now_s
                if own is not None and own.failure.retries and self._rounds < self._most_rounds:
                    pauses[each.name] = max(rest_s, pause_s(own.failure, attempt=self._rounds))
                elif (
                    own is None and each.verdict.startswith("breaker:") and (breaker.limited or self._failed)
                ):
                    pauses[each.name] = max(rest_s, _PROBED_S)
        pause = min(pauses.values(), default=self._patience_s + 1)
        if pause > self._patience_s:
            raise self._exhausted(decision)
        if any(name in self._tried for name in pauses):
            self._rounds += 1
            self._tried = {name: each for name, each in self._tried.items() if not each.failure.retries}
        self._patience_s -= pause
        return float(pause)

    def _exhausted(self, decision: Decision) -> NoEndpoint | EndpointsExhausted:
        rejected = {each.name: each.verdict for each in decision.candidates}
        why = "; ".join(f"{name} {verdict}" for name, verdict in rejected.items())
        if not self._failed:
            return NoEndpoint(f"no endpoint may serve this call: {why}", rejected)
        errors = [each.error for each in self._failed]
        error = EndpointsExhausted(
            f"all endpoints failed ({len(errors)} attempts): {why}",
            [(each.name, each.error) for each in self._failed],
        )
        plain = [each for each in errors if isinstance(each, Exception)]
        error.__cause__ = ExceptionGroup("the attempts of one routed call", plain)
        return error

    # -- small helps ----------------------------------------------------------------------------------------------

    def _call(self, name: str) -> Call:
        return self._router.call(name, self._ask, new_key())

    def _fits(self, call: Call) -> bool:
        return self._router.facts[call.endpoint].fits

    def _compared(self, attempt: Attempt, usage: Usage) -> Mapping[str, Any]:
        """Return what the call would have cost at the baseline."""
        nanos = self._router.baseline_nanos(self._ask, self._measured, usage)
        if nanos is None:
            return {}
        attempt.baseline = {"endpoint": self._router.baseline, "cost_nanos": nanos}
        return {"baseline": attempt.baseline}

    def _learn(
        self, attempt: Attempt, usage: Usage | None, latency_ms: float, ttft_ms: float | None, now_s: float
    ) -> None:
        call, fitted = attempt.reservation.call, attempt.fitted_output_tokens
        outcome = Outcome(
            latency_ms=latency_ms,
            ttft_ms=ttft_ms,
            probe=attempt.probe,
            agent=call.attribution.value("agent"),
            size=self._measured.size,
            chain=self._measured.chain,
            seen=_seen(call, usage) if usage is not None else None,
            output_tokens=_whole_answer(usage, fitted, call.n),
        )
        learned = self._router.learned
        with learned.lock:
            learned.answered(attempt.facts.key, outcome, now_s)


def _let_in_s(decision: Decision, name: str) -> float:
    """Return after how long a probe after a pause was let in: whom another endpoint serves need not wait for it."""
    usual_ms = next(each.latency_ms_p95 for each in decision.candidates if each.name == name) or 0
    return max(LET_IN_S, usual_ms / 1_000) if len(decision.ranking) > 1 else LET_IN_S


def _with_budget(decision: Decision, money: Money) -> Decision:
    """Return the same decision, knowing for which endpoints there was no money."""
    if not money.short:
        return decision
    known = [replace(each, budget=money.short.get(each.name, "")) for each in decision.candidates]
    return decide(known, decision.sla, explore=decision.explore)


def _seen(call: Call, usage: Usage) -> Seen:
    counts = usage.total.counts
    written = sum(
        n for kind, n in counts.items() if kind.startswith("cache_write") and kind.endswith("tokens")
    )
    return Seen(
        input_tokens=counts.get("input_tokens", 0),
        read_tokens=counts.get("cache_read_tokens", 0),
        written_tokens=written,
        implicit=caches_by_itself(call.provider, call.model),
        ttl_s=_HOUR_S if written and asked_writes(call) == "1h" else _FIVE_MINUTES_S,
    )


def _whole_answer(usage: Usage | None, fitted: int | None, n: int) -> int | None:
    if usage is None:
        return None
    answered = usage.output_tokens // n
    return answered if fitted is None or answered < fitted else None
