"""`Usage`: what a provider reported for one call."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .kinds import INPUT_PARTS, KINDS, OUTPUT_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from decimal import Decimal

__all__ = ["Plain", "Usage"]

# (input, cache read, cache written for 5 minutes, for 1 hour, output): all that most calls have.
Plain = tuple[int, int, int, int, int]

# A call that reports nothing else has no parts that could exceed them.
_TOTALS = frozenset({"input_tokens", "output_tokens"})
_PLAIN_KINDS = frozenset({
    "input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens",
    "output_tokens", "input_text_tokens", "output_text_tokens", "cache_text_read_tokens",
    "input_tool_tokens", "input_text_tool_tokens", "output_reasoning_tokens", "output_text_reasoning_tokens",
})  # fmt: skip


class Usage:
    """Tokens and paid uses of one call, as the provider counted them. Immutable; adds with `+`.

    Counts are totals: `input_tokens` includes cached, written, audio and image tokens, `output_tokens` includes
    reasoning. A kind that was not reported reads as 0; `counts` holds exactly what was reported.

        Usage(input_tokens=12_000, cache_read_tokens=8_000, output_tokens=3_000).cache_read_tokens

    Args:
        tier: The service tier that served the call, as the provider spells it, if it says so.
        region: Where the call was processed, if the provider says so (Anthropic's `inference_geo`).
        model: The model that answered, if the response says so.
        provider_cost: US dollars that the provider says it billed (OpenRouter), upstream cost included.
        lines: The parts of a call that ran several models or steps: `(model, usage)`, where None is the model asked
            for. They replace the token counts when the call is priced. Empty for ordinary calls.
        flags: What is odd: `"parts_exceed_total"`, `"total_mismatch"`, `"input_missing"` (output without input, as
            some streams report it: the true cost is higher), `"cache_ttl_unknown"` (tokens were written to a cache of
            unknown lifetime: priced as the dearer one).
        **counts: Counts by kind (see `maestro_core.usage.KINDS`); None means not reported.

    Raises:
        TypeError: For an unknown kind, or a count that is no int.
        ValueError: For a negative count.
    """

    __slots__ = ("counts", "flags", "lines", "model", "plain", "provider_cost", "region", "tier")

    counts: Mapping[str, int]
    tier: str | None
    region: str | None
    model: str | None
    provider_cost: Decimal | None
    lines: tuple[tuple[str | None, Usage], ...]
    flags: tuple[str, ...]
    plain: Plain | None

    def __init__(
        self,
        *,
        tier: str | None = None,
        region: str | None = None,
        model: str | None = None,
        provider_cost: Decimal | None = None,
        lines: Iterable[tuple[str | None, Usage]] = (),
        flags: Iterable[str] = (),
        **counts: int | None,
    ) -> None:
        reported = {kind: _count(kind, value) for kind, value in counts.items() if value is not None}
        marks = tuple(dict.fromkeys(flags))
        parts = tuple(lines)
        exceeding = _parts_exceed_total(reported)
        if exceeding and "parts_exceed_total" not in marks:
            marks += ("parts_exceed_total",)
        put = object.__setattr__
        put(self, "counts", MappingProxyType(reported))
        put(self, "tier", tier)
        put(self, "region", region)
        put(self, "model", model)
        put(self, "provider_cost", provider_cost)
        put(self, "lines", parts)
        put(self, "flags", marks)
        ordinary = not parts and not exceeding
        put(self, "plain", _plain(reported, unknown_ttl="cache_ttl_unknown" in marks) if ordinary else None)

    @classmethod
    def parse(cls, provider: str, payload: object, *, api: str = "default") -> Usage:
        """Read a provider's response, or the usage block in it.

        Takes JSON dicts and SDK objects; chat, responses, embeddings and realtime of OpenAI and everything compatible
        with it, Anthropic, Google, Bedrock Converse, Cohere, Mistral; LangChain's messages and `usage_metadata`.

        Args:
            provider: Provider id, e.g. `"openai"`; it decides only where providers count differently.
            payload: The response, its usage block, or a LangChain message.
            api: `"default"`, `"chat"`, `"responses"`, `"embeddings"` or another flavour; a hint, since
                blocks say themselves what they are.

        Raises:
            ValueError: If the payload reports no usage, or a count that cannot be true.
        """
        from .payloads import parse

        return parse(provider, payload, api=api)

    @property
    def total(self) -> Usage:
        """The sum of all lines, with the fees that stand beside them. For an ordinary call, itself."""
        if not self.lines:
            return self
        listed = {kind for _, part in self.lines for kind in part.counts}
        merged: dict[str, Any] = {kind: count for kind, count in self.counts.items() if kind not in listed}
        for _, part in self.lines:
            for kind, count in part.counts.items():
                merged[kind] = merged.get(kind, 0) + count
        return Usage(tier=self.tier, region=self.region, model=self.model, flags=self.flags, **merged)

    def __add__(self, other: Usage) -> Usage:
        """Add two parts of one call, e.g. chunks of a stream.

        Raises:
            ValueError: If they were served at different tiers or regions, which have different prices.
        """
        if not isinstance(other, Usage):
            return NotImplemented
        if (self.tier, self.region) != (other.tier, other.region):
            raise ValueError(
                f"cannot add usage of tier {self.tier}, region {self.region} to tier {other.tier}, "
                f"region {other.region}: price them separately"
            )
        merged: dict[str, Any] = dict(self.counts)
        for kind, count in other.counts.items():
            merged[kind] = merged.get(kind, 0) + count
        known = self.provider_cost is not None and other.provider_cost is not None
        return Usage(
            tier=self.tier,
            region=self.region,
            model=self.model if self.model == other.model else None,
            # One unknown part makes the sum unknown, not smaller.
            provider_cost=self.provider_cost + other.provider_cost if known else None,  # type: ignore[operator]
            lines=_joined(self, other),
            flags=self.flags + other.flags,
            **merged,
        )

    # Every call asks for these two a dozen times, and `__getattr__` comes only after a failed search.
    @property
    def input_tokens(self) -> int:
        """All input tokens: cached, written, audio and image tokens included."""
        return self.counts.get("input_tokens", 0)

    @property
    def output_tokens(self) -> int:
        """All output tokens, reasoning included."""
        return self.counts.get("output_tokens", 0)

    def __getattr__(self, name: str) -> int:
        if name in KINDS:
            return self.counts.get(name, 0)
        raise AttributeError(f"Usage has no kind {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Usage is immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Usage is immutable; cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, Usage) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Callable[..., Usage], tuple[dict[str, Any]]]:
        return _rebuild, ({**self.counts, **self._facts()},)

    def __repr__(self) -> str:
        facts = {name: value for name, value in self._facts().items() if value}
        shown = ", ".join(f"{name}={value!r}" for name, value in {**self.counts, **facts}.items())
        return f"Usage({shown})"

    def _facts(self) -> dict[str, Any]:
        names = ("tier", "region", "model", "provider_cost", "lines", "flags")
        return {name: getattr(self, name) for name in names}

    def _identity(self) -> tuple[object, ...]:
        # A reported 0 and nothing reported are the same usage.
        return frozenset(item for item in self.counts.items() if item[1]), *self._facts().values()


def _rebuild(fields: dict[str, Any]) -> Usage:
    return Usage(**fields)


def _count(kind: str, value: object) -> int:
    if kind not in KINDS:
        raise TypeError(f"{kind!r} is no kind of usage; the kinds are {', '.join(sorted(KINDS))}")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{kind} must be a whole number, not {value!r}")
    if value < 0:
        raise ValueError(f"{kind} is {value}; counts are zero or more")
    return value


def _parts_exceed_total(counts: Mapping[str, int]) -> bool:
    """Whether a split of the input or the output adds up to more than its total, or the total is missing."""
    if counts.keys() <= _TOTALS:
        return False
    get = counts.get
    for total, splits in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
        most = get(total, 0)
        if max([sum([get(kind, 0) for kind in split]) for split in splits]) > most:
            return True
    written = get("cache_write_5m_tokens", 0) + get("cache_write_1h_tokens", 0)
    return written > get("cache_write_tokens", 0)


def _plain(counts: Mapping[str, int], *, unknown_ttl: bool) -> Plain | None:
    """Return the disjoint counts of an ordinary text call, or None for anything else; pricing has a fast way for it.

    No part may exceed its total.
    """
    if not counts.keys() <= _PLAIN_KINDS and any(counts[kind] for kind in counts.keys() - _PLAIN_KINDS):
        return None
    get = counts.get
    read, written, hour = (
        get("cache_read_tokens", 0),
        get("cache_write_tokens", 0),
        get("cache_write_1h_tokens", 0),
    )
    if unknown_ttl:
        hour = written - get("cache_write_5m_tokens", 0)
    return (
        get("input_tokens", 0) - read - written,
        read,
        written - hour,
        hour,
        get("output_tokens", 0),
    )


def _joined(left: Usage, right: Usage) -> tuple[tuple[str | None, Usage], ...]:
    if not left.lines and not right.lines:
        return ()
    return (left.lines or ((left.model, left),)) + (right.lines or ((right.model, right),))
