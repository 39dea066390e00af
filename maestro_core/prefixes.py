"""How many tokens a conversation had when the provider counted it, so that only what is new has to be bounded.

Bytes are a safe bound on tokens, and a loose one: about four times too much for English. A conversation of 100,000
tokens would be held at four times its cost; but all of it but the last turn was counted by the provider already.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from .forks import fork_safe_lock

if TYPE_CHECKING:
    from .types import Call
    from .usage import Usage

__all__ = ["History", "Known", "Prefixes", "beginnings", "fingerprint"]

_MOST = 40_000
# What a chat format may put around a reply when it comes back as input.
_FRAMING = 16
# The last format of marshal in which equal values are always the same bytes: later ones tell shared objects apart.
_FORMAT = 2
# Characters. marshal copies a text several times, which takes longer than to hash it where the copies are large.
_LONG = 32_768
# Bytes. From 2,048 on, hashlib lets other threads run meanwhile: beside a busy one, each message of a long history would
# wait 5 ms for its turn to go on.
_AT_ONCE = 2_000
# Where every conversation begins: what is kept of a text cannot be looked up in another process's tables.
_START = os.urandom(32)
_NO_TOOLS = b""


class History(tuple[Mapping[str, object], ...]):  # noqa: SLOT001 - with slots a tuple can keep nothing else
    """A conversation's messages as plain data, looked at once however often they are asked for.

    Routing, bounding and learning ask for the same beginnings. They are those of the first time, before the request
    went out: what a provider counts is what was sent, even if a message is changed while it answers.
    """

    found: tuple[bytes, ...] | None = None


class Known(NamedTuple):
    """A counted beginning: its tokens, the messages after it, and whether its count has the call's tools in it."""

    tokens: int
    new: Sequence[Mapping[str, object]]
    same_tools: bool


class Prefixes:
    """Counted beginnings of conversations, of one process; the oldest are forgotten first.

    A conversation is known by provider, model and the fingerprint of its beginning, so a changed word anywhere makes
    it unknown. No text is kept.
    """

    def __init__(self) -> None:
        # By provider, model, beginning, and the tools among its tokens; without tools, as it was counted last.
        self._tokens: dict[tuple[str, str, bytes, bytes | None], int] = {}
        self._lock = fork_safe_lock()

    def learn(self, call: Call, usage: Usage, reply: Mapping[str, object] | None) -> None:
        """Remember what the provider counted for a call's input, and for its input together with its reply."""
        if not call.history or not usage.input_tokens or usage.lines or usage.flags:
            return  # parts of it may not have been counted
        last, tools = beginnings(call.history)[-1], fingerprint(call.tools) if call.tools else _NO_TOOLS
        found = {last: usage.input_tokens}
        if reply is not None and call.n == 1:
            found[_after_message(last, reply)] = usage.input_tokens + usage.output_tokens + _FRAMING
        with self._lock:
            for beginning, tokens in found.items():
                for counted in (tools, None):
                    key = (call.provider, call.model, beginning, counted)
                    self._tokens.pop(key, None)  # the youngest stand last
                    self._tokens[key] = tokens
            while len(self._tokens) > _MOST:
                del self._tokens[next(iter(self._tokens))]

    def known(self, call: Call) -> Known | None:
        """Return the longest counted beginning of a call's conversation, or None."""
        if not call.history:
            return None
        found, get = beginnings(call.history), self._tokens.get
        for end in range(len(found), 0, -1):
            beginning = found[end - 1]
            tokens = get((call.provider, call.model, beginning, None))
            if tokens is not None:
                tools = fingerprint(call.tools) if call.tools else _NO_TOOLS
                same = get((call.provider, call.model, beginning, tools))
                new = call.history[end:]
                return (
                    Known(tokens, new, same_tools=False)
                    if same is None
                    else Known(same, new, same_tools=True)
                )
        return None


def beginnings(history: Sequence[Mapping[str, object]]) -> tuple[bytes, ...]:
    """Return one fingerprint for each beginning of a conversation, the shortest first."""
    kept = history if isinstance(history, History) else None
    if kept is not None and kept.found is not None:
        return kept.found
    found, last = [], _START
    for message in history:
        last = _after_message(last, message)
        found.append(last)
    if kept is None:
        return tuple(found)
    kept.found = tuple(found)
    return kept.found


def fingerprint(value: object) -> bytes:
    """Return a process's own fingerprint of plain data, whatever its nesting.

    Two values that differ never share one: what is hashed can be read back to the value, and nobody is known to have
    found two inputs of SHA-256 with the same hash. Python's own hashes would not do: they have 64 bits, those of numbers
    are no secret, and those of texts neither where PYTHONHASHSEED is set; whoever can choose a text could have it
    counted as another, shorter one. Equal values may differ (in the order of keys, or 1 and 1.0): then the bound is
    loose.
    """
    return _after(_START, value)


def _after_message(beginning: bytes, message: Mapping[str, object]) -> bytes:
    content = message.get("content")
    if type(content) is not str or len(content) < _LONG:
        return _after(beginning, message)
    started = _after(beginning, ("long", {**message, "content": None}))
    return _hashed(started, content.encode("utf-8", "surrogatepass"))


def _after(beginning: bytes, value: Any) -> bytes:
    try:
        data = marshal.dumps(value, _FORMAT)
    except ValueError:  # it has other than plain data in it
        data = marshal.dumps(_plain(value), _FORMAT)
    return _hashed(beginning, data)


def _hashed(beginning: bytes, data: bytes) -> bytes:
    if len(data) < _AT_ONCE:
        return sha256(beginning + data).digest()
    hashed = sha256(beginning)
    for start in range(0, len(data), _AT_ONCE):
        hashed.update(data[start : start + _AT_ONCE])
    return hashed.digest()


_ONCE = count()
_CLASSES: WeakKeyDictionary[type, int] = WeakKeyDictionary()


def _plain(value: Any) -> Any:
    """Return plain data that is the same for the same value only; for objects that do not say what they are, never."""
    if value is None or type(value) in {str, bytes, bool, int, float}:
        return value
    if isinstance(value, str):  # also a member of an enum
        return "text", str.__str__(value)
    if isinstance(value, Mapping):
        return "mapping", [(_plain(key), _plain(part)) for key, part in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return "sequence", [_plain(part) for part in value]
    if isinstance(value, type):  # a schema; its name would be the same after it was written anew
        return "class", _CLASSES.setdefault(value, next(_ONCE))
    shown = repr(value)
    return "object", type(value).__qualname__, shown, next(_ONCE) if " at 0x" in shown else 0
