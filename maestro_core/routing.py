"""Which endpoint serves a call: pure stages, each of which gives every candidate a verdict.

Rules, capability, quality, health, SLA and budget say what is against an endpoint; of those with nothing against them,
the one with the least expected cost is chosen. Nothing here reads a clock or a counter: whatever a stage looks at stands
in the candidate, so a recorded decision can be made again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .types import SLA, Candidate, Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CONFIDENCE", "STAGES", "Stage", "decide", "judged"]

Stage = "Callable[[Candidate, SLA], str]"

# A latency in an SLA is a 95th percentile.
CONFIDENCE = 0.95
OK = "ok"


def rules(candidate: Candidate, sla: SLA) -> str:  # noqa: ARG001 - all stages are asked alike
    """Say which rule excludes the endpoint."""
    return f"rule:{candidate.rule}" if candidate.rule else ""


def capability(candidate: Candidate, sla: SLA) -> str:  # noqa: ARG001
    """Say what the endpoint cannot do, or by how much the call is too long for it."""
    if candidate.lacks:
        return f"needs:{','.join(candidate.lacks)}"
    room = candidate.context_tokens
    if room is not None and candidate.input_tokens > room:
        return f"context:{_thousands(candidate.input_tokens)}>{_thousands(room)}"
    return ""


def quality(candidate: Candidate, sla: SLA) -> str:
    """Say by how much the endpoint is not good enough."""
    least = sla.quality_min
    if least is None or (candidate.quality is not None and candidate.quality >= least):
        return ""
    return f"quality:{_plain(candidate.quality)}<{_plain(least)}"


def health(candidate: Candidate, sla: SLA) -> str:  # noqa: ARG001
    """Say why the endpoint is not to be asked now."""
    return f"failed:{candidate.tried}" if candidate.tried else candidate.health


def latency(candidate: Candidate, sla: SLA) -> str:
    """Say which part of the SLA the endpoint is not expected to meet."""
    for name, chance, p95, limit in (
        ("p95", candidate.latency_chance, candidate.latency_ms_p95, sla.latency_ms_p95),
        ("ttft p95", candidate.ttft_chance, candidate.ttft_ms_p95, sla.ttft_ms_p95),
    ):
        if limit is not None and chance is not None and p95 is not None and chance < CONFIDENCE:
            return f"sla:{name} {_seconds(p95)}>{_seconds(limit)}"
    most = sla.error_rate_max
    if most is not None and candidate.error_rate_least > most:
        return f"sla:errors {candidate.error_rate:.1%}>{most:.1%}"
    return ""


def budget(candidate: Candidate, sla: SLA) -> str:  # noqa: ARG001
    """Say why the caps leave no money for the endpoint."""
    return f"budget:{candidate.budget}" if candidate.budget else ""


# In this order; the first that says something gives the verdict. What stands behind `latency` outlasts a relaxed SLA.
STAGES: tuple[Callable[[Candidate, SLA], str], ...] = (rules, capability, quality, health, budget, latency)


def judged(candidate: Candidate, sla: SLA) -> Candidate:
    """Return the candidate with its verdict."""
    said = next((reason for stage in STAGES if (reason := stage(candidate, sla))), OK)
    return candidate if candidate.verdict == said else replace(candidate, verdict=said)


def decide(candidates: Sequence[Candidate], sla: SLA, *, explore: str = "") -> Decision:
    """Return the decision between candidates.

    Endpoints that only miss the SLA stand behind those that meet it, the likeliest to meet it first: they are better
    than no answer. Nothing else is ever relaxed.

    Args:
        candidates: In the order of their declaration, which decides between equals. Their verdicts are ignored.
        sla: What is asked for.
        explore: An endpoint that is asked although it is expected to miss the SLA, to learn whether it still does.

    Returns:
        The decision; `chosen` is empty if no endpoint may serve the call.
    """
    seen = tuple(judged(each, sla) for each in candidates)
    able = sorted((each for each in seen if each.verdict == OK), key=_cost)
    slow = sorted((each for each in seen if each.verdict.startswith("sla:")), key=_misses)
    ranked = [*able, *slow]
    explored = next((each for each in slow if each.name == explore), None)
    if explored is not None and able:
        ranked.remove(explored)
        ranked.insert(0, explored)
    relaxed = ("sla",) if slow and not able else ()
    if not ranked:
        return Decision(chosen="", why="no endpoint may serve the call", ranking=(), candidates=seen, sla=sla)
    first, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    return Decision(
        chosen=first.name,
        why=_why(first, second, able, exploring=explored is first),
        ranking=tuple([each.name for each in ranked]),
        candidates=seen,
        sla=sla,
        relaxed=relaxed,
        explore=first.name if explored is first else "",
        runner_up=second.name if second else "",
        margin_nanos=_margin(first, second),
    )


def _cost(candidate: Candidate) -> tuple[bool, int]:
    # An unknown price is not a low one. Sorting is stable: equals keep the order of their declaration.
    return candidate.cost_nanos is None, candidate.cost_nanos or 0


def _misses(candidate: Candidate) -> tuple[float, bool, int]:
    chances = [each for each in (candidate.latency_chance, candidate.ttft_chance) if each is not None]
    # In tenths, so that among those that are about equally late the price decides.
    return -round(min(chances, default=1.0), 1), *_cost(candidate)


def _margin(first: Candidate, second: Candidate | None) -> int | None:
    if second is None or first.cost_nanos is None or second.cost_nanos is None:
        return None
    return second.cost_nanos - first.cost_nanos


def _why(first: Candidate, second: Candidate | None, able: Sequence[Candidate], *, exploring: bool) -> str:
    if exploring:
        return "tried again: it was too slow, and may be no longer"
    if not able:
        return (
            "none meets the SLA; the likeliest to" if second else "the only one, although it misses the SLA"
        )
    if len(able) == 1:
        return "the only one that qualifies"
    if first.cost_nanos is None:
        return f"the first of {len(able)} that qualify; none has a price"
    warm = f", {_thousands(first.warm_tokens)} tokens of it cached" if first.warm_tokens else ""
    return f"the cheapest of {len(able)} that qualify{warm}"


def _thousands(tokens: int) -> str:
    return f"{tokens}" if tokens < 1_000 else f"{tokens / 1_000:.0f}k"  # noqa: PLR2004 - as people write it


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds:.0f}ms" if milliseconds < 1_000 else f"{milliseconds / 1_000:.1f}s"  # noqa: PLR2004


def _plain(number: float | None) -> str:
    return "undeclared" if number is None else f"{number:.2f}"
