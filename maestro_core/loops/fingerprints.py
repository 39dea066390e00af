"""What is kept of a tool's arguments and results: hashes, from which nothing can be read back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Outcome", "fingerprint", "outcome", "spoken"]

# More of a text says no more about whether it is the same text.
_MOST_CHARACTERS = 16_384
# Where a result tells the time or an id, it is short.
_MOST_VOLATILE = 400

# What differs between two results that say the same: moments, durations, ids, the ordinal of an attempt.
_VOLATILE = re.compile(
    r"\d{4}-\d\d-\d\d(?:t[\d:.]+)?(?:z|[+-][\d:]+)?"
    r"|\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?z?"
    r"|\d+(?:\.\d+)?(?:ns|us|ms|s|sec|min)"
    r"|(?:\w+[-_:#])?(?=[a-f]*\d)[0-9a-f]{8,}(?:-[0-9a-f]+)*"
    r"|\d{9,}\.\d+"
)
_UNITS = frozenset(["ns", "us", "ms", "s", "sec", "secs", "second", "seconds", "min", "minute", "minutes"])
_ORDINALS = frozenset(["attempt", "try", "retry", "request", "req"])
_ID_DIGITS = 9
_BETWEEN_WORDS = str.maketrans(dict.fromkeys("\"'`,;=(){}[]<>|", " "))
_NO_DIGITS = str.maketrans(dict.fromkeys("0123456789"))
_FAILURE = re.compile(r"\s*[\[({\"']*\s*(?:error|exception|traceback|failed|failure|fatal)\b", re.IGNORECASE)
# A tool that changes something answers so each time; that it does says nothing about progress.
_RECEIPT = re.compile(
    r"\W*(?:(?:status|result|state|message|ok|success)\W+)?(?:null|none|true|ok|okay|done|success\w*|succeeded|saved|sent|stored|created|updated|added|deleted|removed"
    r"|written|wrote|inserted|committed|posted|accepted)\b",
    re.IGNORECASE,
)
_MOST_RECEIPT = 80
_as_json = json.JSONEncoder(sort_keys=True, default=repr).encode


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool's call came to, as hashes.

    Args:
        steady: Of the result without moments, durations and ids.
        rough: Of the result without any digits.
        failed: Whether the tool failed.
        receipt: Whether the result only confirms that something was done.
    """

    steady: int
    rough: int
    failed: bool = False
    receipt: bool = False


def fingerprint(value: object) -> int:
    """Return a number that is the same for equal values in this process, whatever the order of their keys."""
    return _hashed(_text(value))


def outcome(result: object, *, failed: bool = False) -> Outcome:
    """Return what is kept of a tool's result.

    Args:
        result: Text or JSON-like data, or an error.
        failed: Whether the framework says that the tool failed; a short text that begins like an error says it, too.
    """
    text = _text(result)
    if len(text) > _MOST_VOLATILE:
        exact = _hashed(text)
        return Outcome(exact, exact, failed)
    steady = _steady(text)
    return Outcome(
        _hashed(steady),
        _hashed(steady.translate(_NO_DIGITS)),
        failed or _FAILURE.match(text) is not None,
        not failed and len(text) <= _MOST_RECEIPT and _RECEIPT.match(text) is not None,
    )


def spoken(reply: Mapping[str, object]) -> int:
    """Return the fingerprint of a model's reply: its words and the tools it asks for, without their ids."""
    content, calls = reply.get("content"), reply.get("tool_calls")
    if isinstance(content, list):
        content = [part.get("text") if isinstance(part, dict) else part for part in content]
    if isinstance(calls, list):
        calls = [(call.get("name"), call.get("args")) if isinstance(call, dict) else call for call in calls]
    text = _text([content, calls]) if calls else _text(content)
    return _hashed(text if len(text) > _MOST_VOLATILE else _steady(text))


def _steady(text: str) -> str:
    words = text.lower().translate(_BETWEEN_WORDS).split()
    for i, word in enumerate(words):
        if word.isalpha():
            continue
        bare = word.strip(".:!?#")
        if bare.isalpha():
            continue
        if not bare.isdecimal():
            if _VOLATILE.fullmatch(bare):
                words[i] = "~"
        elif len(bare) >= _ID_DIGITS or _counts_something(words, i):
            words[i] = "~"
    return " ".join(words)


def _counts_something(words: list[str], i: int) -> bool:
    before = words[i - 1].rstrip(":#.") if i else ""
    after = words[i + 1].rstrip(".!?") if i + 1 < len(words) else ""
    return before in _ORDINALS or after in _UNITS


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return _as_json(value)
    except (TypeError, ValueError, RecursionError):  # keys that cannot be sorted, or a circle
        return repr(value)


def _hashed(text: str) -> int:
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}{len(text)}{text[-half:]}"
    return hash(text)  # Python's own, of 64 bits and keyed: what is compared was seen in this process
