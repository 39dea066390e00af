"""What a routed call must meet, what was known of each endpoint, and which one was chosen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SLA", "Candidate", "Decision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SLA:
    """What an endpoint must meet to be chosen. What is left None is not asked for.

    Args:
        latency_ms_p95: 95 of 100 calls shall be answered in full within so many milliseconds.
        ttft_ms_p95: 95 of 100 streams shall begin within so many milliseconds.
        quality_min: Endpoints of a lower quality, or of none that was declared, are excluded. Never relaxed.
        error_rate_max: The share of calls that may fail, from 0 to 1.

    Raises:
        ValueError: For a number out of its range.
    """

    latency_ms_p95: float | None = None
    ttft_ms_p95: float | None = None
    quality_min: float | None = None
    error_rate_max: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency_ms_p95", "ttft_ms_p95"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"SLA({name}={value!r}): write milliseconds, more than 0")
        for name in ("quality_min", "error_rate_max"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"SLA({name}={value!r}): write a number from 0 to 1")

    def over(self, other: SLA) -> SLA:
        """Return this SLA, completed by another one where it asks for nothing."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return SLA(**{n: getattr(other, n) if value is None else value for n, value in own.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One endpoint as it stood when a call was routed: everything that the decision looked at, and its verdict.

    Args:
        name: The endpoint's name.
        provider: Its provider id.
        model: The model, as the provider names it.
        rule: Which rule excludes it; empty if none does.
        lacks: What the call needs and the endpoint does not have: `"tools"`, `"images"`, ...
        input_tokens: How long the prompt is expected to be, for this model.
        output_tokens: How long the answer is expected to be.
        warm_tokens: How much of the prompt is expected to be read from the provider's cache.
        context_tokens: The most that prompt and answer may be together; None if it is not known.
        quality: From 0 to 1; None if it is not declared.
        health: Why it is not to be asked now (`"breaker:open 12s"`); empty if it may be.
        latency_ms_p95: The predicted 95th percentile of the whole answer; None if nothing is known.
        latency_chance: The probability that the latency of the SLA is met; None if it does not matter or is not known.
        ttft_ms_p95: The predicted 95th percentile of the time to the first token.
        ttft_chance: Likewise its probability.
        error_rate: The share of calls that failed lately.
        error_rate_least: What that share is at least, for all that is known from so many calls.
        cost_nanos: The expected cost of this call, its cached part at the cache's price; None without a price.
        budget: Why its money could not be had; empty if it could, or was not asked for.
        tried: Why it already failed in this call; empty if it was not tried.
        verdict: `"ok"`, or the first reason against it.
    """

    name: str
    provider: str
    model: str
    rule: str = ""
    lacks: tuple[str, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    warm_tokens: int = 0
    context_tokens: int | None = None
    quality: float | None = None
    health: str = ""
    latency_ms_p95: int | None = None
    latency_chance: float | None = None
    ttft_ms_p95: int | None = None
    ttft_chance: float | None = None
    error_rate: float = 0.0
    error_rate_least: float = 0.0
    cost_nanos: int | None = None
    budget: str = ""
    tried: str = ""
    verdict: str = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which endpoint serves a call, and why.

    `maestro_core.routing.decide(decision.candidates, decision.sla, explore=decision.explore)` is the same decision again.

    Args:
        chosen: The name of the endpoint.
        why: In words.
        ranking: The endpoints that may serve the call, best first; those after the first stand by for a failover.
        candidates: Every endpoint, in the order in which they were declared.
        sla: What was asked for.
        relaxed: What of it could not be met by any endpoint, and was dropped.
        explore: The endpoint that was chosen to learn whether it is still too slow; empty in most calls.
        runner_up: The next best.
        margin_nanos: How much more the runner-up is expected to cost; None where one of them has no price.
    """

    chosen: str
    why: str
    ranking: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...]
    sla: SLA
    relaxed: tuple[str, ...] = ()
    explore: str = ""
    runner_up: str = ""
    margin_nanos: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as JSON values; what says nothing is left out."""
        return {
            **_said(self),
            "sla": _said(self.sla),
            "candidates": [{**_said(each), "verdict": each.verdict} for each in self.candidates],
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return the decision that `to_dict` wrote; other keys are ignored."""
        own = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        own["sla"] = SLA(**own["sla"])
        own["candidates"] = tuple(_candidate(each) for each in own["candidates"])
        for name in ("ranking", "relaxed"):
            own[name] = tuple(own.get(name, ()))
        return cls(**own)


def _said(thing: SLA | Candidate | Decision) -> dict[str, Any]:
    found = {}
    for name, default in _DEFAULTS[type(thing)]:
        value = getattr(thing, name)
        if value != default:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


_DEFAULTS = {
    kind: [(each.name, each.default) for each in fields(kind)] for kind in (SLA, Candidate, Decision)
}


def _candidate(found: Mapping[str, Any]) -> Candidate:
    return Candidate(**{**found, "lacks": tuple(found.get("lacks", ()))})
