"""OpenAI's Chat Completions (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._answer import Answer, Asked
from ._dialect import Event, Failure, forced, openai_error
from ._tokens import compact, strings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._bill import Counts
    from ._script import Request

__all__ = ["Chat"]


class Chat:
    """`POST /v1/chat/completions`."""

    name = "chat"

    def __init__(self, request: Request) -> None:
        self._request = request

    def asked(self) -> Asked:
        """Return what the request asks for."""
        request = self._request
        body = request.body
        if not request.messages:
            raise Failure(400, "Missing required parameter: 'messages'.")
        functions = [tool["function"] for tool in request.tools if "function" in tool]
        tools = {function["name"]: function.get("parameters", {}) for function in functions}
        blocks: list[tuple[str, str | None]] = [(compact(tool), None) for tool in request.tools]
        blocks += [(text, None) for text in strings(request.messages)]
        return Asked(
            model=request.model,
            prompt=request.prompt,
            limit=request.max_output_tokens,
            n=body.get("n") or 1,
            tool=forced(body.get("tool_choice"), tools),
            schema=_schema(body.get("response_format") or {}),
            blocks=blocks,
        )

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if answer.calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in answer.calls
            ]
        elif not answer.text:
            message["content"] = ""
        choices = [
            {"index": i, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
            for i in range(answer.n)
        ]
        head = self._head(answer, "chat.completion")
        return {**head, "choices": choices, "usage": self.usage(answer.counts)}

    def events(self, answer: Answer) -> Iterator[Event]:
        """Yield the chunks; usage comes only where `stream_options` asks for it."""
        head = self._head(answer, "chat.completion.chunk")
        with_usage = bool((self._request.body.get("stream_options") or {}).get("include_usage"))

        def chunk(delta: Mapping[str, Any], finish: str | None = None, *, is_piece: bool = False) -> Event:
            choices = [
                {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}
                for i in range(answer.n)
            ]
            extra = {"usage": None} if with_usage else {}
            return Event({**head, "choices": choices, **extra}, is_piece=is_piece)

        yield chunk({"role": "assistant", "content": "" if answer.text else None, "refusal": None})
        opened = -1
        for piece in answer.pieces:
            if piece.call is None:
                yield chunk({"content": piece.text}, is_piece=True)
                continue
            for index in range(opened + 1, piece.call + 1):
                yield chunk(_opening(answer, index))
            opened = piece.call
            delta = {"index": piece.call, "function": {"arguments": piece.text}}
            yield chunk({"tool_calls": [delta]}, is_piece=True)
        for index in range(opened + 1, len(answer.calls)):
            yield chunk(_opening(answer, index))
        yield chunk({}, _finish(answer))
        if with_usage:
            yield Event({**head, "choices": [], "usage": self.usage(answer.counts)})
        yield Event("[DONE]")

    def usage(self, counts: Counts) -> dict[str, Any]:
        """Return the usage block."""
        written = {"cache_write_tokens": counts.cache_write} if counts.cache_write else {}
        return {
            "prompt_tokens": counts.input,
            "completion_tokens": counts.output,
            "total_tokens": counts.input + counts.output,
            "prompt_tokens_details": {"cached_tokens": counts.cache_read, "audio_tokens": 0, **written},
            "completion_tokens_details": {
                "reasoning_tokens": counts.reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def error(self, failure: Failure) -> dict[str, Any]:
        """Return the body of a failed request."""
        return openai_error(failure)

    def broken(self, failure: Failure) -> Event:
        """Return the event that ends a stream which fails on its way."""
        return Event(openai_error(failure))

    def _head(self, answer: Answer, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{answer.id}",
            "object": kind,
            "created": answer.created,
            "model": answer.model,
            "service_tier": "default",
            "system_fingerprint": None,
        }


def _schema(wanted: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if wanted.get("type") == "json_schema":
        schema: Mapping[str, Any] = wanted["json_schema"].get("schema", {})
        return schema
    return {"type": "object"} if wanted.get("type") == "json_object" else None


def _finish(answer: Answer) -> str:
    if answer.cut:
        return "length"
    return "tool_calls" if answer.calls else "stop"


def _opening(answer: Answer, index: int) -> dict[str, Any]:
    call = answer.calls[index]
    function = {"name": call.name, "arguments": ""}
    return {"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}
