"""`Usage`: what a provider reported for one call."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .kinds import INPUT_PARTS, KINDS, OUTPUT_PARTS
from .payloads import read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from decimal import Decimal

__all__ = ["Plain", "Usage"]

# (input, cache read, cache written for 5 minutes, for 1 hour, output): all that most calls have.
Plain = tuple[int, int, int, int, int]

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
        reported: dict[str, int] = {}
        for kind, value in counts.items():
            if value is not None:
                known = type(value) is int and value >= 0 and kind in KINDS
                reported[kind] = value if known else _count(kind, value)
        _fill(self, reported, tuple(dict.fromkeys(flags)), tier, region, model, provider_cost, tuple(lines))

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
        said = read(provider, payload, api)  # which has checked every count
        lines: tuple[tuple[str | None, Usage], ...] = ()
        if said.lines:
            lines = tuple(
                [(model, _fill(object.__new__(Usage), parts, odd)) for model, parts, odd in said.lines]
            )
        return _fill(
            object.__new__(Usage),
            said.counts,
            said.flags,
            said.tier,
            said.region,
            said.model,
            said.provider_cost,
            lines,
        )

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


class _Plan(NamedTuple):
    """What there is to see to in counts of certain kinds."""

    splits: tuple[tuple[str, tuple[str, ...]], ...]  # (total, parts of it): the parts may not add up to more
    odd: tuple[str, ...]  # those that make a call no ordinary text call, unless they are 0


@lru_cache(maxsize=1024)  # calls report the same few kinds again and again
def _plan(kinds: tuple[str, ...]) -> _Plan:
    splits = [
        ("cache_write_tokens", ("cache_write_5m_tokens", "cache_write_1h_tokens")),
        *(("input_tokens", parts) for parts in INPUT_PARTS),
        *(("output_tokens", parts) for parts in OUTPUT_PARTS),
    ]
    there = [(total, tuple(part for part in parts if part in kinds)) for total, parts in splits]
    return _Plan(
        tuple((total, parts) for total, parts in there if parts),
        tuple(kind for kind in kinds if kind not in _PLAIN_KINDS),
    )


# The setters of the slots: the usage itself is immutable, and to look each of them up takes three times as long.
_put_counts, _put_flags, _put_lines, _put_model, _put_plain, _put_provider_cost, _put_region, _put_tier = (
    vars(Usage)[name].__set__ for name in Usage.__slots__
)


def _fill(  # noqa: PLR0917 - the fields of a usage, that most calls have none of
    usage: Usage,
    counts: dict[str, int],
    flags: tuple[str, ...],
    tier: str | None = None,
    region: str | None = None,
    model: str | None = None,
    provider_cost: Decimal | None = None,
    lines: tuple[tuple[str | None, Usage], ...] = (),
) -> Usage:
    """Return usage with counts that were checked, and that nobody else keeps."""
    plan = _plan(tuple(counts))
    exceeding = False
    for total, parts in plan.splits:
        left = counts.get(total, 0)
        for part in parts:
            left -= counts[part]
        exceeding = exceeding or left < 0
    if exceeding and "parts_exceed_total" not in flags:
        flags += ("parts_exceed_total",)
    plain = None
    if not exceeding and not lines and not (plan.odd and any(map(counts.__getitem__, plan.odd))):
        plain = _plain(counts, unknown_ttl="cache_ttl_unknown" in flags)
    _put_counts(usage, MappingProxyType(counts))
    _put_tier(usage, tier)
    _put_region(usage, region)
    _put_model(usage, model)
    _put_provider_cost(usage, provider_cost)
    _put_lines(usage, lines)
    _put_flags(usage, flags)
    _put_plain(usage, plain)
    return usage


def _plain(counts: Mapping[str, int], *, unknown_ttl: bool) -> Plain:
    """Return the disjoint counts of an ordinary text call; pricing has a fast way for it.

    No part may exceed its total.
    """
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
