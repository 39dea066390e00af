"""How many tokens a conversation had when the provider counted it, so that only what is new has to be bounded.

Bytes are a safe bound on tokens, and a loose one: about four times too much for English. A conversation of 100,000
tokens would be held at four times its cost; but all of it but the last turn was counted by the provider already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .forks import fork_safe_lock

if TYPE_CHECKING:
    from .types import Call
    from .usage import Usage

__all__ = ["Known", "Prefixes", "fingerprint"]

_MOST = 40_000
# What a chat format may put around a reply when it comes back as input.
_FRAMING = 16
_TEXTS = frozenset({str, type(None)})


class Known(NamedTuple):
    """A counted beginning: its tokens, the messages after it, and whether its count has the call's tools in it."""

    tokens: int
    new: Sequence[Mapping[str, object]]
    same_tools: bool


class Prefixes:
    """Counted beginnings of conversations, of one process; the oldest are forgotten first.

    A conversation is known by a chained fingerprint of provider, model and messages, so a changed word anywhere
    makes it unknown. Fingerprints are Python's own keyed hashes; no text is kept.
    """

    def __init__(self) -> None:
        # By beginning and the tools among its tokens; and by beginning alone, with whatever tools it was counted last.
        self._tokens: dict[tuple[int, int | None], int] = {}
        self._lock = fork_safe_lock()

    def learn(self, call: Call, usage: Usage, reply: Mapping[str, object] | None) -> None:
        """Remember what the provider counted for a call's input, and for its input together with its reply."""
        if not call.history or not usage.input_tokens or usage.lines or usage.flags:
            return  # parts of it may not have been counted
        chain, tools = _chain(call, call.history)[-1], fingerprint(call.tools)
        found = {chain: usage.input_tokens}
        if reply is not None and call.n == 1:
            found[hash((chain, fingerprint(reply)))] = usage.input_tokens + usage.output_tokens + _FRAMING
        with self._lock:
            for beginning, tokens in found.items():
                for key in ((beginning, tools), (beginning, None)):
                    self._tokens.pop(key, None)  # the youngest stand last
                    self._tokens[key] = tokens
            while len(self._tokens) > _MOST:
                del self._tokens[next(iter(self._tokens))]

    def known(self, call: Call) -> Known | None:
        """Return the longest counted beginning of a call's conversation, or None."""
        if not call.history or not self._tokens:
            return None
        chains, tools = _chain(call, call.history), fingerprint(call.tools)
        for end in range(len(chains), 0, -1):
            for key in ((chains[end - 1], tools), (chains[end - 1], None)):
                tokens = self._tokens.get(key)
                if tokens is not None:
                    return Known(tokens, call.history[end:], same_tools=key[1] is not None)
        return None


def _chain(call: Call, messages: Sequence[Mapping[str, object]]) -> list[int]:
    """Return one fingerprint for each beginning of the conversation."""
    chain = hash((call.provider, call.model))
    found = []
    for message in messages:
        chain = hash((chain, fingerprint(message)))
        found.append(chain)
    return found


def fingerprint(value: object) -> int:
    """Return a process's own hash of plain data, whatever its nesting; no text can be got back from it."""
    # Plain types first: abstract classes are slow to check, and most of a conversation is dicts of strings.
    if isinstance(value, str) or value is None:
        return hash(value)
    if isinstance(value, (dict, Mapping)):
        if _TEXTS.issuperset(map(type, value.values())):
            return hash(tuple(value.items()))
        return hash(tuple([(key, fingerprint(part)) for key, part in value.items()]))
    if isinstance(value, (list, Sequence)) and not isinstance(value, bytes):
        return hash(tuple([fingerprint(part) for part in value]))
    return hash(value) if isinstance(value, int | float | bytes) else hash(repr(value))
