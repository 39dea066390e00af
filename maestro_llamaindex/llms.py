"""An LLM made of several: each call goes to the cheapest that meets what is asked, and on to the next if it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.generic_utils import (
    chat_response_to_completion_response,
    stream_chat_response_to_completion_response,
)
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR
from pydantic import Field, PrivateAttr, field_validator

from maestro_core import SLA, Endpoint
from maestro_core.router import Router

from ._endpoints import Served, serve
from ._exchange import Exchange, Request
from .gate import Gate, exit_here

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from llama_index.core.base.llms.types import CompletionResponse

__all__ = ["RoutedLLM"]

_DEFAULT_WINDOW = 3_900  # LlamaIndex's own, for a model that it does not know


def _transparent(method: Callable[..., Any]) -> Callable[..., Any]:
    # LlamaIndex would draw a span around it; the endpoint's own is the one that shows the call.
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class RoutedLLM(FunctionCallingLLM):
    """Routes each call to the cheapest endpoint that meets the SLA, and fails over; it goes wherever an LLM goes.

    Each attempt is the endpoint's own call, under its true name: held for, settled or released on its own. The
    endpoints' clients retry nothing by themselves: that is done here, elsewhere first. The decision is in
    `additional_kwargs["maestro"]` of every answer, and of the last part of every stream. It needs no `attach`; an agent
    that is attached around it ends at a cap as its `exit_behavior` says.

    Args:
        endpoints: LLMs, or `Endpoint(llm, ...)`; among equals the first is preferred.
        sla: What is asked of them; `with sla(...)` and the argument `sla=SLA(...)` of a call ask otherwise.
        maestro: Where the money is; `Maestro.default()` if None. Without caps nothing is ever refused.

    Raises:
        NoEndpoint: From a call, if no endpoint may serve it; `.rejected` says why.
        EndpointsExhausted: From a call, if all that might have served it failed; `.attempts` has their errors.
        CapExceeded: From a call, if a cap admits it at no endpoint.
    """

    endpoints: list[Any] = Field(min_length=1)
    sla: Any = Field(default_factory=SLA)
    maestro: Any = None

    _served: dict[str, Served] = PrivateAttr(default_factory=dict)
    _gate: Any = PrivateAttr()  # follows LlamaIndex's spans from now on, so that the first run is known, too
    _exchange: Any = PrivateAttr(default=None)

    @field_validator("endpoints", mode="after")
    @classmethod
    def _declared(cls, endpoints: list[Any]) -> list[Endpoint]:
        return [each if isinstance(each, Endpoint) else Endpoint(each) for each in endpoints]

    def model_post_init(self, context: Any, /) -> None:
        """Look at the endpoints."""
        super().model_post_init(context)
        self._served = {each.facts.name: each for each in serve(self.endpoints)}
        self._gate = Gate(self.maestro)

    def lend(self, gate: Gate) -> None:
        """Without a Maestro of its own, a routed model that is attached reports to the one of its agent."""
        if self.maestro is None:
            self._gate, self._exchange = gate, None

    def give_back(self, gate: Gate) -> None:
        """That agent is detached."""
        if self._gate is gate:
            self._gate, self._exchange = Gate(self.maestro), None

    @classmethod
    def class_name(cls) -> str:
        """Return what LlamaIndex calls the class."""
        return "RoutedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What every endpoint can do: the shortest context of all; tools, if one of them has tools."""
        found = [_metadata(each.llm) for each in self._served.values()]
        known = [each for each in found if each is not None]
        return LLMMetadata(
            context_window=min((each.context_window for each in known), default=_DEFAULT_WINDOW),
            num_output=max((each.num_output for each in known), default=-1),
            is_chat_model=True,
            is_function_calling_model=any("tools" not in each.facts.lacks for each in self._served.values()),
            model_name="|".join(self._served),
        )

    # -- LlamaIndex's methods -------------------------------------------------------------------------------------

    @_transparent
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Return the answer of the first endpoint that gives one."""
        way = self._way()
        found: ChatResponse = way.run(self._request(way, messages, kwargs), exit_here("error"))
        return found

    @_transparent
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`."""
        way = self._way()
        found: ChatResponse = await way.arun(self._request(way, messages, kwargs), exit_here("error"))
        return found

    @_transparent
    def stream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> Generator[ChatResponse, None, None]:
        """Return the answer of the first endpoint that begins one, in parts."""
        way = self._way()
        return way.stream(self._request(way, messages, kwargs), exit_here("error"))

    @_transparent
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncGenerator[ChatResponse, None]:
        """As `stream_chat`."""
        way = self._way()
        return way.astream(self._request(way, messages, kwargs), exit_here("error"))

    @_transparent
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002, FBT001, FBT002 - LlamaIndex's
        """As `chat`, for a text."""
        return chat_response_to_completion_response(self.chat([ChatMessage(prompt)], **kwargs))

    @_transparent
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002, FBT001, FBT002
        """As `complete`."""
        return chat_response_to_completion_response(await self.achat([ChatMessage(prompt)], **kwargs))

    @_transparent
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:  # noqa: ARG002, FBT001, FBT002
        """As `stream_chat`, for a text."""
        return stream_chat_response_to_completion_response(self.stream_chat([ChatMessage(prompt)], **kwargs))

    @_transparent
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:  # noqa: ARG002, FBT001, FBT002
        """As `stream_complete`."""
        chunks = await self.astream_chat([ChatMessage(prompt)], **kwargs)

        async def texts() -> AsyncGenerator[CompletionResponse, None]:
            async for chunk in chunks:
                yield chat_response_to_completion_response(chunk)

        return texts()

    # -- tools ----------------------------------------------------------------------------------------------------

    @_transparent
    def _prepare_chat_with_tools(
        self,
        tools: Sequence[Any],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        *,
        tool_required: bool = False,  # LlamaIndex looks for its name here, and else does not ask for it
        **kwargs: Any,
    ) -> dict[str, Any]:
        # Which dialect the tools have to be told in is known when an endpoint is chosen.
        messages = list(chat_history or [])
        if user_msg:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages, "tools": list(tools), "tool_required": tool_required, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[Any],  # noqa: ARG002 - the signature is LlamaIndex's
        allow_parallel_tool_calls: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResponse:
        if not allow_parallel_tool_calls:
            calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
            response.message.blocks = [each for each in response.message.blocks if each not in calls[1:]]
        return response

    @_transparent
    def get_tool_calls_from_response(
        self,
        response: ChatResponse,
        error_on_no_tool_call: bool = True,  # noqa: FBT001, FBT002 - the signature is LlamaIndex's
        **kwargs: Any,  # noqa: ARG002
    ) -> list[ToolSelection]:
        """Return the tools that an answer calls, whichever endpoint gave it.

        Raises:
            ValueError: If it calls none, unless `error_on_no_tool_call` is off.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError("the answer calls no tool")
        return [
            ToolSelection(
                tool_id=each.tool_call_id or "", tool_name=each.tool_name, tool_kwargs=_arguments(each)
            )
            for each in calls
        ]

    # -- one call -------------------------------------------------------------------------------------------------

    def _way(self) -> Exchange:
        if self._exchange is None:
            maestro = self._gate.maestro
            router = Router(maestro, [each.facts for each in self._served.values()])
            self._exchange = Exchange(maestro, router, self._served)
        found: Exchange = self._exchange
        return found

    def _request(self, way: Exchange, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Request:
        asked = {name: value for name, value in kwargs.items() if value is not None}
        asked.setdefault("sla", None)
        asked["sla"] = (self.sla, asked["sla"])
        return Request(
            maestro=way.maestro,
            llm=self,
            method=_never,
            payload=list(messages),
            arguments=(),
            kwargs=asked,
            retries=0,
        )


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError  # a request is sent by the exchange, to an endpoint


def _metadata(llm: Any) -> LLMMetadata | None:
    try:
        found: LLMMetadata = llm.metadata
    except ValueError:  # a model that LlamaIndex does not know
        return None
    return found


def _arguments(call: ToolCallBlock) -> dict[str, Any]:
    if not isinstance(call.tool_kwargs, str):
        return dict(call.tool_kwargs)
    try:
        found = parse_partial_json(call.tool_kwargs)  # of a stream, it may be the beginning only
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
