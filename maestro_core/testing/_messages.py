"""Anthropic's Messages (https://platform.claude.com/docs/en/api/messages)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ._answer import Answer, Asked
from ._dialect import Event, Failure, forced
from ._tokens import compact, strings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._answer import ToolCall
    from ._bill import Counts
    from ._script import Request

__all__ = ["Messages"]

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Messages:
    """`POST /v1/messages`."""

    name = "messages"

    def __init__(self, request: Request) -> None:
        self._request = request

    def asked(self) -> Asked:
        """Return what the request asks for."""
        request = self._request
        body = request.body
        for field in ("max_tokens", "messages"):
            if not body.get(field) and not (field == "max_tokens" and request.path.endswith("/count_tokens")):
                raise Failure(400, f"{field}: Field required")
        tools = {tool["name"]: tool.get("input_schema", {}) for tool in request.tools if "name" in tool}
        wanted = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
        return Asked(
            model=request.model,
            prompt=request.prompt,
            limit=body.get("max_tokens"),
            n=1,
            tool=forced(body.get("tool_choice"), tools),
            schema=wanted.get("schema"),
            blocks=_blocks(request),
        )

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        content: list[dict[str, Any]] = []
        if answer.text:
            content.append({"type": "text", "text": answer.text, "citations": None})
        content += [_tool_use(call, _parsed(call.arguments)) for call in answer.calls]
        return {**_head(answer), "content": content, "stop_reason": _stop(answer),
                "usage": self.usage(answer.counts)}  # fmt: skip

    def events(self, answer: Answer) -> Iterator[Event]:
        """Yield the events of a stream."""

        def event(kind: str, *, is_piece: bool = False, **data: Any) -> Event:
            return Event({"type": kind, **data}, kind, is_piece=is_piece)

        start = {**self.usage(answer.counts), "output_tokens": 1}
        yield event(
            "message_start", message={**_head(answer), "content": [], "stop_reason": None, "usage": start}
        )
        blocks: list[tuple[int | None, dict[str, Any]]] = []
        if answer.text:
            blocks.append((None, {"type": "text", "text": ""}))
        blocks += [(i, _tool_use(call, {})) for i, call in enumerate(answer.calls)]
        for index, (part, block) in enumerate(blocks):
            yield event("content_block_start", index=index, content_block=block)
            for piece in (p for p in answer.pieces if p.call == part):
                text, json_text = ("text_delta", "text"), ("input_json_delta", "partial_json")
                kind, field = text if part is None else json_text
                delta = {"type": kind, field: piece.text}
                yield event("content_block_delta", is_piece=True, index=index, delta=delta)
            yield event("content_block_stop", index=index)
        # The counts of a delta are cumulative, and do not tell the cache's times apart (SDK: MessageDeltaUsage).
        final = {
            k: v for k, v in self.usage(answer.counts).items() if k not in {"cache_creation", "service_tier"}
        }
        yield event("message_delta", delta={"stop_reason": _stop(answer), "stop_sequence": None}, usage=final)
        yield event("message_stop")

    def usage(self, counts: Counts) -> dict[str, Any]:
        """Return the usage block; here `input_tokens` is without the cache's parts."""
        return {
            "input_tokens": counts.plain_input,
            "cache_creation_input_tokens": counts.cache_write,
            "cache_read_input_tokens": counts.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": counts.cache_write_5m,
                "ephemeral_1h_input_tokens": counts.cache_write_1h,
            },
            "output_tokens": counts.output,
            "output_tokens_details": {"thinking_tokens": counts.reasoning},
            "service_tier": "standard",
        }

    def error(self, failure: Failure) -> dict[str, Any]:
        """Return the body of a failed request."""
        kind = failure.code or _ERRORS.get(failure.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": str(failure)}, "request_id": "req_fake"}

    def broken(self, failure: Failure) -> Event:
        """Return the event that ends a stream which fails on its way."""
        return Event(self.error(failure), "error")


def _head(answer: Answer) -> dict[str, Any]:
    fixed = {"type": "message", "role": "assistant", "stop_sequence": None}
    return {"id": f"msg_{answer.id}", "model": answer.model, **fixed}


def _stop(answer: Answer) -> str:
    if answer.cut:
        return "max_tokens"
    return "tool_use" if answer.calls else "end_turn"


def _tool_use(call: ToolCall, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": call.id.replace("call_", "toolu_"),
        "name": call.name,
        "input": arguments,
    }


def _parsed(arguments: str) -> dict[str, Any]:
    """Return arguments as the object that `input` must be; what the output limit cut short is lost."""
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _blocks(request: Request) -> list[tuple[str, str | None]]:
    """Return the prompt's parts in the cache's order: tools, system, messages."""
    blocks = [(compact({**tool, "cache_control": None}), _ttl(tool)) for tool in request.tools]
    contents = [request.body.get("system"), *(message.get("content") for message in request.messages)]
    for content in contents:
        for block in content if isinstance(content, list) else [content or ""]:
            ttl = _ttl(block) if isinstance(block, dict) else None
            blocks.append(("".join(strings(block)), ttl))
    automatic = _ttl(request.body)
    if automatic and blocks:
        blocks[-1] = (blocks[-1][0], automatic)
    return blocks


def _ttl(holder: Mapping[str, Any]) -> str | None:
    mark = holder.get("cache_control")
    return ("1h" if mark.get("ttl") == "1h" else "5m") if mark else None
