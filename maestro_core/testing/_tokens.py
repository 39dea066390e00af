"""The stand-in's own tokenizer: four UTF-8 bytes are one token.

English comes to about four characters a token, other scripts to fewer, as with real vocabularies; and no text ever
has more tokens than bytes, as with every byte-level vocabulary.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["compact", "count_tokens", "cut_tokens", "filler", "split_tokens", "strings"]

_BYTES_PER_TOKEN = 4
_FILLER = "lorem ipsum dolor sit amet, consectetur adipiscing elit. "


def count_tokens(text: str) -> int:
    """Return how many tokens the text has."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def cut_tokens(text: str, most: int) -> str:
    """Return the beginning of the text that has at most so many tokens, without a broken character at its end."""
    return text.encode("utf-8", "surrogatepass")[: most * _BYTES_PER_TOKEN].decode("utf-8", "ignore")


def split_tokens(text: str, most_pieces: int) -> list[str]:
    """Return the text in at most so many pieces of at least about a token; joined, they are the text again."""
    size = max(_BYTES_PER_TOKEN, -(-len(text) // most_pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]


def filler(tokens: int) -> str:
    """Return a text of exactly so many tokens."""
    length = tokens * _BYTES_PER_TOKEN
    return (_FILLER * (length // len(_FILLER) + 1))[:length]


def compact(value: Any) -> str:
    """Return a value as JSON without spaces, as it travels."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# What frames content on the wire and is no text that the model reads.
_FRAME = frozenset(
    {"role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "cache_control", "status"}
)


def strings(value: Any) -> Iterator[str]:
    """Yield every text in messages or parts of them, without the wire's framing (roles, types, ids)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in {"input", "arguments"} and not isinstance(item, str | list):
                yield compact(item)
            elif key not in _FRAME:
                yield from strings(item)
