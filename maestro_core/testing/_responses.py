"""OpenAI's Responses (https://platform.openai.com/docs/api-reference/responses)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._answer import Answer, Asked
from ._dialect import Event, Failure, forced, openai_error
from ._tokens import compact, strings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._answer import Piece, ToolCall
    from ._bill import Counts
    from ._script import Request

__all__ = ["Responses"]


class Responses:
    """`POST /v1/responses`."""

    name = "responses"

    def __init__(self, request: Request) -> None:
        self._request = request

    def asked(self) -> Asked:
        """Return what the request asks for."""
        request = self._request
        body = request.body
        if not request.messages:
            raise Failure(400, "Missing required parameter: 'input'.")
        tools = {tool["name"]: tool.get("parameters", {}) for tool in request.tools if "name" in tool}
        blocks: list[tuple[str, str | None]] = [(compact(tool), None) for tool in request.tools]
        blocks += [(text, None) for text in (body.get("instructions"), *strings(request.messages)) if text]
        wanted = (body.get("text") or {}).get("format") or {}
        schema = {"type": "object"} if wanted.get("type") == "json_object" else wanted.get("schema")
        return Asked(
            model=request.model,
            prompt=request.prompt,
            limit=request.max_output_tokens,
            n=1,
            tool=forced(body.get("tool_choice"), tools),
            schema=schema,
            blocks=blocks,
        )

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        output = [_message(answer)] if answer.text or not answer.calls else []
        return self._body(answer, output=[*output, *map(_call, answer.calls)])

    def events(self, answer: Answer) -> Iterator[Event]:
        """Yield the events of a stream, numbered."""
        for number, (kind, is_piece, data) in enumerate(self._plain_events(answer)):
            yield Event({"type": kind, "sequence_number": number, **data}, kind, is_piece=is_piece)

    def _plain_events(self, answer: Answer) -> Iterator[_Plain]:
        body = self._body(answer, output=[], status="in_progress")
        yield "response.created", False, {"response": body}
        yield "response.in_progress", False, {"response": body}
        index = 0
        if answer.text or not answer.calls:
            yield from _text_events(answer)
            index = 1
        for i, call in enumerate(answer.calls):
            yield from _call_events(call, [p for p in answer.pieces if p.call == i], index + i)
        yield f"response.{_status(answer)}", False, {"response": self.whole(answer)}

    def usage(self, counts: Counts) -> dict[str, Any]:
        """Return the usage block."""
        return {
            "input_tokens": counts.input,
            "input_tokens_details": {
                "cached_tokens": counts.cache_read,
                "cache_write_tokens": counts.cache_write,
            },
            "output_tokens": counts.output,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning},
            "total_tokens": counts.input + counts.output,
        }

    def error(self, failure: Failure) -> dict[str, Any]:
        """Return the body of a failed request."""
        return openai_error(failure)

    def broken(self, failure: Failure) -> Event:
        """Return the event that ends a stream which fails on its way."""
        body = openai_error(failure)["error"]
        data = {"code": body["code"] or body["type"], "message": body["message"], "param": None}
        return Event({"type": "error", "sequence_number": 0, **data}, "error")

    def _body(
        self, answer: Answer, *, output: list[dict[str, Any]], status: str | None = None
    ) -> dict[str, Any]:
        request, asked = self._request, self._request.body
        return {
            "id": f"resp_{answer.id}",
            "object": "response",
            "created_at": answer.created,
            "status": status or _status(answer),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if answer.cut and not status else None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": request.max_output_tokens,
            "metadata": asked.get("metadata") or {},
            "model": answer.model,
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": asked.get("previous_response_id"),
            "service_tier": "default",
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": request.tools,
            "truncation": "disabled",
            "usage": None if status else self.usage(answer.counts),
        }


_Plain = tuple[str, bool, dict[str, Any]]


def _status(answer: Answer) -> str:
    return "incomplete" if answer.cut else "completed"


def _message(answer: Answer) -> dict[str, Any]:
    part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
    head = {"id": f"msg_{answer.id}", "type": "message", "role": "assistant"}
    return {**head, "status": _status(answer), "content": [part]}


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id.replace("call_", "fc_"),
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def _text_events(answer: Answer) -> Iterator[_Plain]:
    item = _message(answer)
    part = item["content"][0]
    where: Mapping[str, Any] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    opened = {**item, "status": "in_progress", "content": []}
    yield "response.output_item.added", False, {"output_index": 0, "item": opened}
    yield "response.content_part.added", False, {**where, "part": {**part, "text": ""}}
    for piece in (p for p in answer.pieces if p.call is None):
        yield "response.output_text.delta", True, {**where, "delta": piece.text, "logprobs": []}
    yield "response.output_text.done", False, {**where, "text": answer.text, "logprobs": []}
    yield "response.content_part.done", False, {**where, "part": part}
    yield "response.output_item.done", False, {"output_index": 0, "item": item}


def _call_events(call: ToolCall, pieces: list[Piece], index: int) -> Iterator[_Plain]:
    item = _call(call)
    where = {"item_id": item["id"], "output_index": index}
    opened = {**item, "status": "in_progress", "arguments": ""}
    yield "response.output_item.added", False, {"output_index": index, "item": opened}
    for piece in pieces:
        yield "response.function_call_arguments.delta", True, {**where, "delta": piece.text}
    done = {**where, "name": call.name, "arguments": call.arguments}
    yield "response.function_call_arguments.done", False, done
    yield "response.output_item.done", False, {"output_index": index, "item": item}
