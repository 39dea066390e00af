"""From a call to the decision who serves it.

Framework-neutral: an adapter says what is asked (`Ask`) and what its endpoints are (`Facts`), and sends. What is learned
is kept with the `Maestro`, under what makes an endpoint itself, so that routers made anew for each request learn together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .cachestate import Seen, beginnings, caches_by_itself
from .estimate import context_window, input_bound
from .health import Prior
from .prices.caching import asked_writes
from .prices.entries import endpoint_price
from .routing import decide
from .rules import broken
from .types import SLA, Attribution, Call, Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from .endpoints import Facts
    from .health import Health
    from .learned import Learned
    from .maestro import Maestro
    from .prices.entries import PriceEntry
    from .types import Decision
    from .usage import Usage

__all__ = ["EXPLORE_AFTER_S", "EXPLORE_ONE_IN", "Ask", "Measured", "Router"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
_UNMEASURED_BYTES = 4_000
_BASELINE_TTL_S = 300.0

# Cheaper endpoints that miss the SLA are asked again, at most once in so many calls and not sooner than that after
# they were last heard of; never for a conversation that would lose more of its cached prompt than this.
EXPLORE_ONE_IN = 50
EXPLORE_AFTER_S = 30.0
_EXPLORE_TOKENS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One model call, before it is known who serves it.

    Args:
        input: As in `Call`, and so the next three.
        history: Likewise.
        tools: Likewise.
        max_output_tokens: The output limit that the request carries itself.
        needs: What an endpoint must be able to do: `"tools"`, `"images"`, `"structured_output"`.
        attribution: Whom it is for.
        sla: What is asked of the endpoint.
        pinned: The name of the one endpoint that shall serve it; any, if empty.
    """

    input: object = None
    history: Sequence[Mapping[str, object]] = ()
    tools: Sequence[object] = ()
    max_output_tokens: int | None = None
    needs: frozenset[str] = frozenset()
    attribution: Attribution = field(default_factory=Attribution)
    sla: SLA = field(default_factory=SLA)
    pinned: str = ""

    def call(self, facts: Facts, price: PriceEntry | None, *, key: str = "") -> Call:
        """Return the call that this becomes at an endpoint."""
        return Call(
            provider=facts.provider,
            model=facts.model,
            input=self.input,
            history=self.history,
            tools=[*self.tools, *facts.carried],
            max_output_tokens=self.limit(facts),
            least_output_tokens=facts.least_output_tokens,
            n=facts.n,
            attempts=facts.attempts,
            tier=facts.tier,
            attribution=self.attribution,
            name=facts.label,
            key=key,
            endpoint=facts.name,
            base_url=facts.base_url,
            price=price,
        )

    def limit(self, facts: Facts) -> int | None:
        """Return the output limit at an endpoint; which of two wins differs, and the larger one cannot be too small."""
        own, asked = facts.max_output_tokens, self.max_output_tokens
        return asked if own is None else own if asked is None else max(own, asked)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is the same of a call at every endpoint: the beginnings of its conversation, and its size in bytes."""

    chain: Sequence[Hashable]
    size: int


@dataclass(frozen=True, slots=True)
class _View:
    """What was known at one moment, for all endpoints."""

    ask: Ask
    measured: Measured
    now_s: float
    warm: Mapping[Hashable, int]
    outputs: Mapping[Hashable, int]
    peers: Prior | None
    at: datetime


class Router:
    """Decides between the endpoints of one routed model.

    Args:
        maestro: Where the money is, and what was learned.
        facts: The endpoints, in the order of their declaration.
        baseline: The endpoint that savings are told against: what each call would have cost there, its own prompt cache
            counted; none, if empty.
        now_s: A monotonic clock, in seconds.

    Raises:
        SettingsError: For a malformed `Endpoint(price=...)`.
        ValueError: Without endpoints, or for a baseline that is none of them.
    """

    def __init__(
        self,
        maestro: Maestro,
        facts: Sequence[Facts],
        *,
        baseline: str = "",
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not facts:
            raise ValueError("endpoints=[]: give at least one chat model, or Endpoint(model)")
        self.maestro = maestro
        self.facts = {each.name: each for each in facts}
        if baseline and baseline not in self.facts:
            raise ValueError(f"baseline={baseline!r} is none of the endpoints: {', '.join(self.facts)}")
        self.baseline = baseline
        self.now_s = now_s
        self._keys = [each.key for each in facts]
        self._prices = {
            each.name: None if each.endpoint.price is None else endpoint_price(each.endpoint.price)
            for each in facts
        }
        self._empty = {each.name: Ask().call(each, self._prices[each.name]) for each in facts}
        self._contexts = {
            each.name: each.context_tokens or context_window(each.provider, each.model) for each in facts
        }

    @property
    def learned(self) -> Learned:
        """What the process knows about endpoints."""
        return self.maestro.learned

    def call(self, name: str, ask: Ask, key: str) -> Call:
        """Return the call that a request becomes at an endpoint."""
        return ask.call(self.facts[name], self._prices[name], key=key)

    def measure(self, ask: Ask) -> Measured:
        """Return what is the same of a call at every endpoint; for a long conversation that takes longest."""
        size = input_bound([ask.input, *ask.history], tools=ask.tools)
        return Measured(beginnings(ask.tools, ask.history), _UNMEASURED_BYTES if size is None else size)

    def decide(
        self,
        ask: Ask,
        measured: Measured | None = None,
        *,
        tried: Mapping[str, str] = _NOTHING,
    ) -> Decision:
        """Return who serves a call, as far as can be told without asking for money.

        Args:
            ask: The call.
            measured: From `measure`, if it was measured already.
            tried: The endpoints that failed in this call already, and how.
        """
        measured = measured or self.measure(ask)
        calls = self._calls(ask)
        quality, rules = self._qualities(calls), self._rules(ask)
        with self.learned.lock:
            view = self._view(ask, measured)
            candidates = [
                self._candidate(
                    call, view, quality=quality[name], rule=rules.get(name, ""), tried=tried.get(name, "")
                )
                for name, call in calls.items()
            ]
            decision = decide(candidates, ask.sla)
            explore = "" if tried else self._explored(decision, view)
        return decide(candidates, ask.sla, explore=explore) if explore else decision

    def _calls(self, ask: Ask) -> Mapping[str, Call]:
        """Return what the call becomes at each endpoint; without what was asked, where only the price matters."""
        hook = self.maestro.plugins.hook
        if hook.maestro_price.get_hookimpls() or hook.maestro_quality.get_hookimpls():
            return {name: ask.call(facts, self._prices[name]) for name, facts in self.facts.items()}
        return self._empty

    def _view(self, ask: Ask, measured: Measured) -> _View:
        learned, now_s = self.learned, self.now_s()
        return _View(
            ask=ask,
            measured=measured,
            now_s=now_s,
            warm=learned.caches.expected(self._keys, measured.chain, now_s) if measured.chain else {},
            outputs=learned.output_tokens(self._keys, ask.attribution.value("agent")),
            peers=learned.peers(self._keys, now_s),
            at=datetime.now(UTC),
        )

    def _candidate(self, call: Call, view: _View, **said: Any) -> Candidate:
        """Return how an endpoint stands; `said` is what is known of it without having learned it."""
        facts, ask, now_s = self.facts[call.endpoint], view.ask, view.now_s
        key = facts.key
        health, limit = self.learned.known(key), ask.limit(facts)
        tokens = self.learned.input_tokens(key, view.measured.size)
        warm, output = min(tokens, view.warm.get(key, 0)), view.outputs[key]
        output = output if limit is None else min(output, limit)
        latency = health.latency.forecast(self._prior(facts, health, view), now_s)
        ttft = health.ttft.forecast(None, now_s)
        sla = ask.sla
        return Candidate(
            name=facts.name,
            provider=facts.provider,
            model=facts.model,
            lacks=tuple(sorted(ask.needs & facts.lacks)),
            input_tokens=tokens,
            output_tokens=output,
            warm_tokens=warm,
            context_tokens=_room(self._contexts[facts.name], limit, health.overflowed_tokens),
            health=health.breaker.says(now_s),
            latency_ms_p95=latency.p95_ms if latency else None,
            latency_chance=latency.chance(sla.latency_ms_p95) if latency and sla.latency_ms_p95 else None,
            ttft_ms_p95=ttft.p95_ms if ttft else None,
            ttft_chance=ttft.chance(sla.ttft_ms_p95) if ttft and sla.ttft_ms_p95 else None,
            error_rate=health.errors.rate(),
            error_rate_least=health.errors.least(now_s),
            cost_nanos=self._expected_nanos(call, view, tokens, warm, output),
            **said,
        )

    def _prior(self, facts: Facts, health: Health, view: _View) -> Prior | None:
        """Return what was declared; else, once there is something to shrink, what the others are like.

        Of an endpoint that was never asked nothing is assumed: it shall be asked.
        """
        if facts.endpoint.latency_ms_p95 is not None:
            return Prior.of_p95(facts.endpoint.latency_ms_p95)
        return view.peers if health.latency.known(view.now_s) >= 1 else None

    def _qualities(self, calls: Mapping[str, Call]) -> dict[str, float | None]:
        declared = {name: facts.endpoint.quality for name, facts in self.facts.items()}
        hook = self.maestro.plugins.hook.maestro_quality
        if not hook.get_hookimpls():
            return declared
        found = {name: hook(call=call, endpoint=self.facts[name].endpoint) for name, call in calls.items()}
        return {name: declared[name] if said is None else said for name, said in found.items()}

    def _rules(self, ask: Ask) -> dict[str, str]:
        """Return the rules that are broken, by endpoint."""
        rules, pinned = self.maestro.settings.rules, ask.pinned
        others = {name: f"pinned to {pinned}" for name in self.facts if pinned not in {"", name}}
        if not rules:
            return others
        who = self.maestro.admission.payers.attributed(self.call(next(iter(self.facts)), ask, "")).attribution
        found = {
            name: broken(rules, who, name, f"{facts.provider}:{facts.model}")
            for name, facts in self.facts.items()
        }
        return {name: rule for name, rule in found.items() if rule} | others

    def baseline_nanos(self, ask: Ask, measured: Measured, usage: Usage) -> int | None:
        """Return what an answered call would have cost at the baseline, and remember that it was there, too.

        Its cache is one that has seen the same conversations; the same prompt and answer are taken to be as long there.
        """
        facts = self.facts[self.baseline]
        call, lane, now_s = self.call(self.baseline, ask, ""), ("baseline", facts.key), self.now_s()
        tokens, keeps = usage.input_tokens, caches_by_itself(facts.provider, facts.model)
        marked = not keeps and "claude" in facts.model.lower() and asked_writes(call) != "none"
        with self.learned.lock:
            caches = self.learned.caches
            warm = min(tokens, caches.held(lane, measured.chain, now_s))
            seen = Seen(
                input_tokens=tokens,
                read_tokens=warm,
                written_tokens=tokens - warm if marked else 0,
                implicit=keeps,
                ttl_s=_BASELINE_TTL_S,
            )
            caches.learn(lane, measured.chain, seen, now_s)
        view = _View(ask, measured, now_s, {}, {}, None, datetime.now(UTC))
        return self._expected_nanos(call, view, tokens, warm, usage.output_tokens // call.n)

    def _expected_nanos(self, call: Call, view: _View, tokens: int, warm: int, output: int) -> int | None:
        """Return what a call is expected to cost: what is warm at the cache's price, what is new as it would be written."""
        new, five_minutes, hour = tokens - warm, 0, 0
        if "claude" in call.model:
            written = asked_writes(self.call(call.endpoint, view.ask, ""))
            if written == "1h":
                new, hour = 0, new
            elif written != "none":
                new, five_minutes = 0, new
        plain = (new, warm, five_minutes, hour, output * call.n)
        return self.maestro.admission.quotes.expected(call, plain, view.at)

    def _explored(self, decision: Decision, view: _View) -> str:
        """Return the cheaper endpoint that shall be asked although it missed the SLA lately, or nothing."""
        learned = self.learned
        learned.calls_since_explored += 1
        if decision.relaxed or not decision.ranking or learned.calls_since_explored < EXPLORE_ONE_IN:
            return ""
        seen = {each.name: each for each in decision.candidates}
        chosen = seen[decision.chosen]
        if chosen.cost_nanos is None or chosen.warm_tokens > _EXPLORE_TOKENS:
            return ""
        for name in decision.ranking[1:]:
            other, health = seen[name], learned.known(self.facts[name].key)
            cheaper = other.cost_nanos is not None and other.cost_nanos < chosen.cost_nanos
            stale = view.now_s - health.seen_s() >= EXPLORE_AFTER_S
            if cheaper and stale and other.verdict.startswith("sla:"):
                learned.calls_since_explored, health.explored_s = 0, view.now_s
                return name
        return ""


def _room(context: int | None, limit: int | None, overflowed: int | None) -> int | None:
    """Return how long a prompt may be, the room for its answer deducted."""
    room = None if context is None else context - min(limit or 0, context)
    if overflowed is None:
        return room
    return overflowed - 1 if room is None else min(room, overflowed - 1)
