"""What was said, for spans, where `capture_content` asks for it: messages as OpenTelemetry's GenAI conventions write them.

The conventions' schemas are gen-ai-input-messages.json and gen-ai-output-messages.json. Images, audio and files are named,
and not carried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maestro_core.types import Call, Record

__all__ = ["asked", "said"]

_ROLES = {"human": "user", "ai": "assistant", "function": "tool"}


def asked(call: Call) -> str:
    """Return the messages that a call sends, as JSON; a completion model's prompts are a user's."""
    messages: list[Mapping[str, Any]] = list(call.history)
    return json.dumps(
        [_message(each) for each in messages or [{"role": "user", "content": list(_texts(call.input))}]],
        default=str,
    )


def said(call: Call, reply: Mapping[str, Any], record: Record | None) -> str:
    """Return what a model answered, as JSON: one message, and why it ended as far as that is known here."""
    message = _message(reply)
    calls = any(part["type"] == "tool_call" for part in message["parts"])
    limit = (record.detail.get("fitted_output_tokens") if record else None) or call.max_output_tokens
    cut = record is not None and limit is not None and record.usage.get("output_tokens", 0) >= limit
    return json.dumps(
        [{**message, "finish_reason": "tool_call" if calls else "length" if cut else "stop"}], default=str
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = str(message.get("role") or "user")
    role = _ROLES.get(role, role)
    content, more = message.get("content"), message.get("more") or {}
    if role == "tool":
        called = message.get("tool_call_id") or more.get("tool_call_id")
        answer = "\n".join(_texts(content))
        return {"role": role, "parts": [{"type": "tool_call_response", "id": called, "response": answer}]}
    parts = [_part(block) for block in ([content] if isinstance(content, str) else content or ())]
    listed = message.get("tool_calls") or ()
    if listed:  # of which some makers' content tells, too
        parts = [part for part in parts if part["type"] not in {"tool_call", "tool_use", "function_call"}]
    parts += [
        {"type": "tool_call", "id": each.get("id"), "name": each.get("name"), "arguments": each.get("args")}
        for each in listed
    ]
    return {"role": role, "parts": [part for part in parts if part != {"type": "text", "content": ""}]}


def _part(block: Any) -> dict[str, Any]:
    if isinstance(block, str):
        return {"type": "text", "content": block}
    kind = str(block.get("type")) if isinstance(block, Mapping) else type(block).__name__
    if kind == "text":
        return {"type": "text", "content": block.get("text", "")}
    if kind == "tool_call":
        return {
            "type": kind,
            "id": block.get("id"),
            "name": block.get("name"),
            "arguments": block.get("input", block.get("args")),
        }
    return {"type": kind}


def _texts(content: object) -> Iterator[str]:
    """Yield the texts in content, however deep they are in lists; a block's text is one."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | tuple):
        for each in content:
            yield from _texts(each)
    elif isinstance(content, Mapping) and isinstance(content.get("text"), str):
        yield content["text"]
