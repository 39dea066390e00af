"""Whether a request asks its provider to keep something in the prompt cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from maestro_core.types import Call

    from .bound import CacheWrites

__all__ = ["asked_writes"]

# Where Claude writes to the cache only what a request marks, and requests are not changed on their way.
# (docs.anthropic.com "Prompt caching"; Bedrock user guide "Prompt caching"; Vertex takes Anthropic's requests.)
_DIRECT = frozenset({"anthropic", "aws", "google"})
# Anthropic and LangChain; Bedrock's Converse and LlamaIndex's block; LlamaIndex's argument for Anthropic.
_MARKS = frozenset({"cache_control", "cachePoint", "cache_point", "cache_idx"})
_EPHEMERAL = "ephemeral"
_HOUR = "1h"
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})  # what can hold no mark
# What objects keep beside what they send: it may be anything, large, or lead in circles.
_PARTS = ("content", "blocks", "additional_kwargs", "tool_calls", "extras", "metadata", "cache_control")


def asked_writes(call: Call) -> CacheWrites:
    """Return how long the request lets a provider keep its input: `"none"`, `"5m"` or `"1h"`.

    `"1h"`, the dearest, is also the answer wherever a cache may be written without a mark in the request.
    """
    if call.provider not in _DIRECT or "claude" not in call.model.lower():
        return "1h"
    found = _marks((call.input, call.history, call.tools))
    if not found:
        return "none"
    return "1h" if _HOUR in found else "5m"


def _marks(value: object) -> set[str]:
    """Return what marks there are anywhere: `"5m"`, `"1h"`, or nothing."""
    found: set[str] = set()
    seen: set[int] = set()  # objects may refer to each other
    waiting: list[object] = [value]
    while waiting:
        each = waiting.pop()
        kind = type(each)  # the checks against abstract classes below take longer than all else
        if kind is dict or (kind not in _PLAIN and isinstance(each, Mapping)):
            block = cast("Mapping[Any, Any]", each)
            if not _MARKS.isdisjoint(block) or block.get("type") == _EPHEMERAL:
                found |= _marks_of(block)
            waiting += [part for part in block.values() if type(part) not in _PLAIN]
        elif kind is list or kind is tuple or isinstance(each, AbstractSet | list | tuple):
            waiting += [part for part in cast("list[object]", each) if type(part) not in _PLAIN]
        elif kind in _PLAIN or isinstance(each, str | bytes):
            continue
        elif id(each) not in seen:
            seen.add(id(each))
            parts = _parts(each)
            found |= _marks_of(parts)
            waiting += parts.values()
        if _HOUR in found:
            break
    return found


def _marks_of(block: Mapping[Any, Any]) -> set[str]:
    # LangChain hands the arguments of a request over without their names; of "cache_control" that leaves this dict.
    bare = block.get("type") == _EPHEMERAL
    if not bare and not any(block.get(mark) is not None for mark in _MARKS):
        return set()
    return {"5m", _HOUR} if _says_hour(block) else {"5m"}


def _says_hour(block: Mapping[Any, Any]) -> bool:
    waiting: list[object] = [block, *(block.get(mark) for mark in _MARKS)]
    return any(_ttl(each) not in (None, "5m") for each in waiting)


def _ttl(control: object) -> object:
    return control.get("ttl") if isinstance(control, Mapping) else getattr(control, "ttl", None)


def _parts(obj: object) -> dict[str, Any]:
    if isinstance(obj, Iterable) and not hasattr(obj, "__dict__"):
        return {"content": list(obj)}
    return {
        name: part for name in _PARTS if (part := getattr(obj, name, None)) is not None and part is not obj
    }
