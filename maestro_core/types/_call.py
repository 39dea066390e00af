"""What is about to be sent, whom it is for, and what it costs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING, Literal

from maestro_core.money import to_usd
from maestro_core.quick import quick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from maestro_core.prices.entries import PriceEntry

__all__ = ["UNATTRIBUTED", "Attribution", "Call", "Cost", "CostLine", "Step", "new_key"]

UNATTRIBUTED = "(unattributed)"

# One stage of the way to a call: ("agent", "researcher") or ("tool", "web_search").
Step = tuple[Literal["agent", "tool"], str]

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]

# Seeded by the system, apart from the generator that programs seed themselves; asking the system for every key gives
# other threads the interpreter in the middle of a call.
_chance = Random()  # noqa: S311 - keys are identities, not secrets
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_chance.seed)


def new_key() -> str:
    """Return a ULID: 26 characters, unique, sorted by time (https://github.com/ulid/spec)."""
    number = (time.time_ns() // 1_000_000) << 80 | _chance.getrandbits(80)
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


@quick
@dataclass(frozen=True, slots=True)
class Attribution:
    """Whom a call is for.

    Args:
        dimensions: `{"team": "growth", "customer": "acme", "run": "..."}`; at most 16 of 128 characters each.
        path: The agents and tools around the call, outermost first. A call is charged to all of them, once each;
            reports count it at the innermost.
    """

    dimensions: Mapping[str, str] = field(default_factory=dict)
    path: tuple[Step, ...] = ()

    def value(self, dimension: str) -> str:
        """Return the value that a report shows: the innermost agent or tool, else the dimension's value."""
        for kind, name in reversed(self.path):
            if kind == dimension:
                return name
        return self.dimensions.get(dimension, UNATTRIBUTED)

    def values(self, dimension: str) -> tuple[str, ...]:
        """Return every value that a meter charges: all agents or tools on the path, once each, else one value."""
        names = [name for kind, name in self.path if kind == dimension]
        return tuple(dict.fromkeys(names)) if names else (self.dimensions.get(dimension, UNATTRIBUTED),)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call that is about to be sent.

    Args:
        provider: Provider id as in genai-prices: `"openai"`, `"anthropic"`, `"aws"`, ...
        model: The model asked for, as the provider names it.
        input: What will be sent: text, messages or any nesting of them. Only measured, never stored.
        history: The conversation's messages, oldest first, as plain data; likewise only measured. What the provider
            counted of it before need not be bounded anew.
        max_output_tokens: The output limit that the request carries, or None if it carries none.
        tools: Tool definitions that are sent along. Only measured.
        least_output_tokens: Fitting a limit below this would buy no answer, e.g. because a thinking budget comes first.
        max_tool_calls: How often the provider may run its own tools (web search, ...) in it, where the request says so.
        n: How many completions are asked for.
        attempts: How often the client library may send it by itself (1 + its retries).
        tier: The service tier that the request asks for.
        operation: `"chat"`, `"embeddings"`, or `"tool"` for one use of a paid tool (`provider="tool"`).
        attribution: Whom it is for; the surrounding `attribution(...)` is merged in when it is reserved.
        name: How messages call it, e.g. `"ChatOpenAI gpt-5"`; the model's name if empty.
        key: Identity of this attempt, made by the client; every verb of the ledger is idempotent on it.
        at: When it is priced; now, if None.
        endpoint: Name of the endpoint that it was routed to; empty if it was not routed.
        base_url: Where it goes, if the user's model names a place of its own: never with credentials.
        price: What the user declared that endpoint to cost (`maestro_core.prices.entries.endpoint_price`); it comes
            before every other price.
    """

    provider: str
    model: str
    input: object = None
    history: Sequence[Mapping[str, object]] = ()
    max_output_tokens: int | None = None
    tools: Sequence[object] = ()
    least_output_tokens: int = 1
    max_tool_calls: int | None = None
    n: int = 1
    attempts: int = 1
    tier: str | None = None
    operation: Literal["chat", "embeddings", "tool"] = "chat"
    attribution: Attribution = field(default_factory=Attribution)
    name: str = ""
    key: str = field(default_factory=new_key)
    at: datetime | None = None
    endpoint: str = ""
    base_url: str = ""
    price: PriceEntry | None = None


@quick
@dataclass(frozen=True, slots=True)
class CostLine:
    """One token kind or fee of a cost.

    Args:
        kind: `"input"`, `"cache_read"`, `"output"`, `"web_searches"`, ...
        count: Tokens, or uses.
        picos_per_unit: The rate in pico-dollars (1e-12 US dollars) each; exact.
        model: The model whose rate it is.
    """

    kind: str
    count: int
    picos_per_unit: int | Fraction
    model: str = ""

    @property
    def picos(self) -> int | Fraction:
        """The line's exact amount in pico-dollars."""
        return self.count * self.picos_per_unit

    @property
    def usd(self) -> Decimal:
        """The line's amount in US dollars, rounded half-even to nano-dollars."""
        return to_usd(round(Fraction(self.picos) / 1000))


@quick
@dataclass(frozen=True, slots=True)
class Cost:
    """Priced usage.

    Args:
        nanos: Nano-dollars: the exact sum of the lines, rounded once, half-even (a bound is rounded up).
        lines: What it is made of.
        price_id: Which price was used, e.g. `"openai:gpt-5-mini@2025-08-07"`.
        unpriced: Token kinds that were used and have no rate; `nanos` is then a lower bound.
    """

    nanos: int
    lines: tuple[CostLine, ...] = ()
    price_id: str = ""
    unpriced: tuple[str, ...] = ()

    @property
    def usd(self) -> Decimal:
        """The cost in US dollars, exact to the nano-dollar."""
        return to_usd(self.nanos)
