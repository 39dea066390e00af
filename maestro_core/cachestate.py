"""Which beginnings of conversations the providers hold in their prompt caches, as far as can be told from here.

Moving a conversation to another endpoint pays for its whole prompt again, so what is warm where is part of the price.
Providers keep their caches for themselves; what their replies report as read and written is the truth that corrects
what is expected here. Nothing is asked over the network, and no text is kept: only fingerprints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import prefixes

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

__all__ = ["CacheState", "Seen", "beginnings", "caches_by_itself"]

_MOST = 40_000
# Caches that need no mark in the request. (OpenAI and Azure "Prompt caching", Gemini "Implicit caching", DeepSeek
# "Context caching", xAI "Prompt caching", Groq "Prompt caching", Moonshot "Context caching")
_BY_THEMSELVES = frozenset({"azure", "deepseek", "google", "groq", "moonshotai", "openai", "x-ai"})
# The shortest prompt that OpenAI keeps; Gemini's and the others' are of that size too.
_LEAST_TOKENS = 1_024
# How sure it is that a warm beginning is still there, before a reply has shown it, and how many replies that is worth.
_SURVIVAL = 0.9
_SURVIVAL_WEIGHT = 2.0
_KEEP = 2 ** (-1 / 30)


def caches_by_itself(provider: str, model: str) -> bool:
    """Return whether a provider keeps prompts that no mark in the request asks it to keep."""
    return provider in _BY_THEMSELVES and "claude" not in model.lower()


def beginnings(tools: Sequence[object], history: Sequence[Mapping[str, object]]) -> list[tuple[bytes, bytes]]:
    """Return one fingerprint for each beginning of a conversation, the shortest first; tools come before it all."""
    carried = prefixes.fingerprint(tools)
    return [(carried, beginning) for beginning in prefixes.beginnings(history)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a reply said about the cache.

    Args:
        input_tokens: The whole prompt.
        read_tokens: What of it was read from the cache.
        written_tokens: What of it was written to the cache.
        implicit: Whether the provider keeps prompts by itself.
        ttl_s: For how long it keeps them.
    """

    input_tokens: int
    read_tokens: int
    written_tokens: int
    implicit: bool
    ttl_s: float

    @property
    def warm_tokens(self) -> int:
        """What of the prompt is in the cache from now on."""
        marked = self.read_tokens + self.written_tokens
        if self.written_tokens or not self.implicit:
            return marked
        return self.input_tokens if self.input_tokens >= _LEAST_TOKENS else 0


@dataclass(slots=True)
class _Warm:
    tokens: int
    until_s: float


@dataclass(slots=True)
class _Survival:
    expected: float = 0.0
    read: float = 0.0

    def share(self) -> float:
        total = self.expected + _SURVIVAL_WEIGHT
        return min(1.0, (self.read + _SURVIVAL_WEIGHT * _SURVIVAL) / total)

    def learn(self, share: float) -> None:
        self.expected = self.expected * _KEEP + 1
        self.read = self.read * _KEEP + min(1.0, share)


class CacheState:
    """What is warm where, for the endpoints of one process. Not safe from several threads by itself."""

    def __init__(self) -> None:
        # By beginning first: one walk over a conversation finds it for all endpoints.
        self._warm: dict[Hashable, dict[Hashable, _Warm]] = {}
        self._survival: dict[Hashable, _Survival] = {}

    def expected(
        self, keys: Collection[Hashable], chain: Sequence[Hashable], now_s: float
    ) -> dict[Hashable, int]:
        """Return how many tokens of a conversation each endpoint is expected to read from its cache.

        Args:
            keys: The endpoints.
            chain: From `beginnings`.
            now_s: The time, in seconds of any clock that does not go back.
        """
        found = self._find(keys, chain, now_s)
        return {key: int(tokens * self._share(key)) for key, tokens in found.items()}

    def held(self, key: Hashable, chain: Sequence[Hashable], now_s: float) -> int:
        """Return how many tokens an endpoint would read if its cache had lost nothing."""
        return self._find([key], chain, now_s).get(key, 0)

    def learn(self, key: Hashable, chain: Sequence[Hashable], seen: Seen, now_s: float) -> None:
        """Remember what a reply said: whether what was thought to be warm was read, and what is warm from now on."""
        if not chain:
            return
        thought = self.held(key, chain, now_s)
        if thought:
            self._survival.setdefault(key, _Survival()).learn(seen.read_tokens / thought)
        self.warm(key, chain[-1], seen.warm_tokens, now_s + seen.ttl_s)

    def warm(self, key: Hashable, beginning: Hashable, tokens: int, until_s: float) -> None:
        """Remember that so many tokens of a beginning are warm until then."""
        if tokens <= 0:
            return
        place = self._warm.pop(beginning, None) or {}
        place[key] = _Warm(tokens, until_s)
        self._warm[beginning] = place  # the youngest stand last
        while len(self._warm) > _MOST:
            del self._warm[next(iter(self._warm))]

    def _find(
        self, keys: Collection[Hashable], chain: Sequence[Hashable], now_s: float
    ) -> dict[Hashable, int]:
        found: dict[Hashable, int] = {}
        for beginning in reversed(chain):
            place = self._warm.get(beginning)
            if place is None:
                continue
            for key in keys:
                warm = place.get(key) if key not in found else None
                if warm is not None and now_s < warm.until_s:
                    found[key] = warm.tokens
            if len(found) == len(keys):
                break
        return found

    def _share(self, key: Hashable) -> float:
        survival = self._survival.get(key)
        return survival.share() if survival else _SURVIVAL
