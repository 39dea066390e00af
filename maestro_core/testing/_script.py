"""What a test says the provider shall answer, and what it sees of a request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._tokens import strings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = ["Reply", "Request", "Rule", "Script"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How the provider behaves for one request. `Reply()` answers at once with an echo of what was asked.

    Where the request forces a tool or asks for a JSON schema, and neither `text` nor `tool_calls` is given, a value
    is made up that fits the schema. The request's output limit cuts whatever is scripted.

    Args:
        text: What the model says.
        tool_calls: Tools it calls, as `("search", {"query": "x"})`; arguments may be text, also malformed JSON.
        model: The model that serves, and bills, in place of the one asked for.
        input_tokens: All input, including the cache's parts; counted if None. Never less than its parts.
        output_tokens: All output, including reasoning; counted if None. Without `text`, the answer is of that length.
        cache_read_tokens: Part of the input that is read from the cache.
        cache_write_tokens: Part of the input that is written to the cache (for five minutes, where times differ).
        cache_write_1h_tokens: Part of the input that is written to the cache for an hour.
        reasoning_tokens: Part of the output that stays hidden; generated first.
        status: An HTTP status from 400 fails the request, with the provider's own error body, and bills nothing. With
            `cut_after`, a stream begins well, ends in an error event, and is billed for its chunks.
        error: The message of a failure; a usual one if empty.
        error_code: The failure's code or type, e.g. `"insufficient_quota"`; the usual one of the status if empty.
        retry_after: The Retry-After header of a failure, in seconds.
        headers: Further headers of a failure, e.g. `{"retry-after-ms": "250", "x-should-retry": "false"}`.
        delay_s: Seconds before the headers.
        first_chunk_delay_s: Seconds between the headers and the first chunk of a stream.
        chunk_delay_s: Seconds between two chunks of a stream.
        chunks: In how many chunks a text or a tool call is streamed at most; 32, and at least four characters each.
        cut_after: The connection is lost after so many chunks of a stream. A plain answer, and a stream with 0, is
            lost before the headers.
        drop: The connection is closed at once, as by a load balancer in trouble: no answer, no model asked, no bill.
        hang_s: The provider serves the call, bills it in full, and keeps silent for so many seconds or until the client
            leaves (`math.inf`: for ever); then the answer follows.
    """

    text: str | None = None
    tool_calls: Sequence[tuple[str, Mapping[str, Any] | str]] = ()
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    status: int = 200
    error: str = ""
    error_code: str = ""
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0
    first_chunk_delay_s: float = 0
    chunk_delay_s: float = 0
    chunks: int = 32
    cut_after: int | None = None
    drop: bool = False
    hang_s: float = 0

    def __post_init__(self) -> None:
        parts = self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens
        if self.input_tokens is not None and parts > self.input_tokens:
            raise ValueError(f"{parts} cached tokens are more than input_tokens={self.input_tokens}")
        if self.output_tokens is not None and self.reasoning_tokens > self.output_tokens:
            raise ValueError(
                f"reasoning_tokens={self.reasoning_tokens} is more than output_tokens={self.output_tokens}"
            )
        if self.chunks < 1:
            raise ValueError("chunks must be 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request as the provider received it.

    Attributes:
        number: 1 for the first since the start or the last `reset()`.
        path: `"/v1/chat/completions"`, ...
        protocol: `"chat"`, `"responses"`, `"embeddings"`, `"messages"`, or `""` for an unknown path.
        headers: Names in lower case, without credentials.
        body: The JSON body; empty if it was none.
        at: When it arrived, aware UTC.
        status: The HTTP status it was answered with; 0 until then, and for a connection lost before the headers.
    """

    number: int
    path: str
    protocol: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    at: datetime
    status: int = 0

    @property
    def model(self) -> str:
        """The model asked for."""
        return str(self.body.get("model", ""))

    @property
    def stream(self) -> bool:
        """Whether a stream is asked for."""
        return bool(self.body.get("stream"))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation in the protocol's own form; the Responses API's items, or its text as one message."""
        items = self.body.get("messages", self.body.get("input", []))
        return [{"role": "user", "content": items}] if isinstance(items, str) else list(items)

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tool definitions in the protocol's own form."""
        return list(self.body.get("tools") or ())

    @property
    def tool_names(self) -> list[str]:
        """The names of the tools on offer."""
        return [tool.get("name") or tool.get("function", {}).get("name", "") for tool in self.tools]

    @property
    def prompt(self) -> str:
        """The text of the last message from a user."""
        for message in reversed(self.messages):
            if message.get("role") == "user" and not _results(message):
                return " ".join(strings(message.get("content")))
        return ""

    @property
    def tool_results(self) -> list[str]:
        """The results of tools that the conversation ends with, in order: empty when it is not a tool's turn."""
        found: list[str] = []
        for message in reversed(self.messages):
            results = _results(message)
            if not results:
                break
            found[:0] = results
        return found

    @property
    def max_output_tokens(self) -> int | None:
        """The output limit on the wire; the lower one, if there are two."""
        names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
        limits = [self.body[name] for name in names if isinstance(self.body.get(name), int)]
        return min(limits, default=None)


def _results(message: Mapping[str, Any]) -> list[str]:
    """Return the tool results that a message carries, in any of the three protocols."""
    if message.get("role") == "tool":
        return [" ".join(strings(message.get("content")))]
    if message.get("type") == "function_call_output":
        return [" ".join(strings(message.get("output")))]
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    return [" ".join(strings(block.get("content"))) for block in blocks if block.get("type") == "tool_result"]


Rule = Reply | str | Callable[[Request], Reply | str | None] | Sequence[Reply | str | None] | None


class Script:
    """Chooses the reply to each request; safe from any thread."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._lock = threading.Lock()
        self._position = 0

    def choose(self, request: Request) -> Reply:
        """Return the reply to a request.

        Raises:
            TypeError: If the rule gives something that is no reply.
        """
        found = self._found(request)
        if isinstance(found, str):
            return Reply(text=found)
        if found is None:
            return Reply()
        if not isinstance(found, Reply):
            raise TypeError(f"a rule answers with a Reply, a text or None, not {type(found).__name__}")
        return found

    def _found(self, request: Request) -> Any:
        if self._rule is None or isinstance(self._rule, Reply | str):
            return self._rule
        if callable(self._rule):
            return self._rule(request)
        with self._lock:
            position, self._position = self._position, self._position + 1
        return self._rule[position] if position < len(self._rule) else None
