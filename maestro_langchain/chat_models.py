"""A chat model made of several: each call goes to the cheapest that meets what is asked, and on to the next if it fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables.config import ensure_config, merge_configs
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr, field_validator

from maestro_core import SLA, Endpoint
from maestro_core.deadlines import awithin, within
from maestro_core.router import Router

from ._convert import ROUTED
from ._endpoints import Served, serve
from ._relays import Relay, abeginning, beginning
from ._trips import Sent, Trip
from .callbacks import MaestroCallbackHandler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

    from langchain_core.language_models import LanguageModelInput
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.runnables import Runnable, RunnableConfig

__all__ = ["RoutedChatModel"]


class RoutedChatModel(BaseChatModel):
    """Routes each call to the cheapest endpoint that meets the SLA, and fails over; it goes wherever a chat model goes.

    Each attempt is a run of its own endpoint, under its true name; this model opens none. Each is held for, settled or
    released on its own. The endpoints' clients retry nothing by themselves: that is done here, elsewhere first. The
    decision is in `response_metadata["maestro"]` of every answer.

    Args:
        endpoints: Chat models, or `Endpoint(model, ...)`; among equals the first is preferred.
        sla: What is asked of them; `with sla(...)` and `.bind(sla=SLA(...))` ask otherwise for some calls.
        maestro: Where the money is; `Maestro.default()` if None. Without caps nothing is ever refused.
        resume_streams: Whether a stream that breaks off is continued by another endpoint, which is asked to go on from
            the text so far. Else its error is raised, as it is before the first token only if no endpoint is left.
        baseline: The name of the endpoint to tell savings against; `response_metadata["maestro"]["baseline"]` has what
            the call would have cost there, its own prompt cache counted.

    Raises:
        NoEndpoint: From a call, if no endpoint may serve it; `.rejected` says why.
        EndpointsExhausted: From a call, if all that might have served it failed; `.attempts` has their errors.
        CapExceeded: From a call, if a cap admits it at no endpoint.
    """

    endpoints: list[Any] = Field(min_length=1)
    sla: SLA = Field(default_factory=SLA)
    maestro: Any = None
    resume_streams: bool = False
    baseline: str = ""

    _served: dict[str, Served] = PrivateAttr(default_factory=dict)
    _handler: MaestroCallbackHandler = PrivateAttr()
    _router: Router | None = PrivateAttr(default=None)

    @field_validator("endpoints", mode="after")
    @classmethod
    def _declared(cls, endpoints: list[Any]) -> list[Endpoint]:
        return [each if isinstance(each, Endpoint) else Endpoint(each) for each in endpoints]

    def model_post_init(self, context: Any, /) -> None:
        """Look at the endpoints."""
        super().model_post_init(context)
        self._served = {each.facts.name: each for each in serve(self.endpoints)}
        self._handler = MaestroCallbackHandler(self.maestro)
        if self.baseline and self.baseline not in self._served:
            raise ValueError(
                f"baseline={self.baseline!r} is none of the endpoints: {', '.join(self._served)}"
            )

    # -- LangChain's methods --------------------------------------------------------------------------------------

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - the name is LangChain's
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Return the answer of the first endpoint that gives one."""
        return self._invoke(self._trip(input, config, stop, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """As `invoke`."""
        return await self._ainvoke(self._trip(input, config, stop, kwargs))

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Yield the answer of the first endpoint that begins one."""
        yield from self._flow(self._trip(input, config, stop, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As `stream`."""
        flow = self._aflow(self._trip(input, config, stop, kwargs))
        try:
            async for chunk in flow:
                yield chunk
        finally:
            await flow.aclose()

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Any = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Return the answers to several conversations, one after the other."""
        configs = _configs(len(messages), callbacks, tags, metadata, run_name, run_id)
        pairs = zip(messages, configs, strict=True)
        answers = [self.invoke(each, config, stop=stop, **kwargs) for each, config in pairs]
        return LLMResult(generations=[[ChatGeneration(message=answer)] for answer in answers])

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Any = None,
        *,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        run_name: str | None = None,
        run_id: Any = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Return the answers to several conversations, asked at the same time."""
        configs = _configs(len(messages), callbacks, tags, metadata, run_name, run_id)
        pairs = zip(messages, configs, strict=True)
        answers = await asyncio.gather(
            *(self.ainvoke(each, config, stop=stop, **kwargs) for each, config in pairs)
        )
        return LLMResult(generations=[[ChatGeneration(message=answer)] for answer in answers])

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools, which each endpoint is told in its own dialect when it is asked."""
        choice = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=[_neutral(tool) for tool in tools], **choice, **kwargs)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Any = None) -> int:
        """Return what the first endpoint counts."""
        first = next(iter(self._served.values())).model
        return first.get_num_tokens_from_messages(messages, tools=tools)

    # -- for what calls a model's inner methods: LangChain has opened a run for this model then, and shows that one -----

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self._invoke(self._inner_trip(messages, stop, run_manager, kwargs))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = await self._ainvoke(self._inner_trip(messages, stop, run_manager, kwargs))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._flow(self._inner_trip(messages, stop, run_manager, kwargs)):
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self._aflow(self._inner_trip(messages, stop, run_manager, kwargs)):
            yield ChatGenerationChunk(message=chunk)

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return ROUTED

    @property
    def _identifying_params(self) -> dict[str, Any]:
        facts = [each.facts for each in self._served.values()]
        return {
            "endpoints": [{"name": f.name, "provider": f.provider, "model": f.model} for f in facts],
            "sla": {name: value for name, value in asdict(self.sla).items() if value is not None},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "maestro"
        params["ls_model_name"] = str(kwargs.get("model") or "|".join(self._served))
        return params

    def _resolve_model_profile(self) -> Any:
        """Return what every endpoint can do: the shortest context of all."""
        inputs = [each.facts.context_tokens for each in self._served.values()]
        known = [tokens for tokens in inputs if tokens is not None]
        return {"max_input_tokens": min(known)} if known else None

    # -- one call -------------------------------------------------------------------------------------------------

    def _invoke(self, trip: Trip) -> AIMessage:
        while True:
            sent = trip.next()
            try:
                with trip.sending(sent):
                    message = within(sent.deadline_s(), lambda: _answer(trip, sent))  # noqa: B023 - awaited here
            except BaseException as error:  # noqa: BLE001 - it is raised, unless another endpoint may do better
                trip.failed(sent, error)
            else:
                return trip.reply(sent, message)

    async def _ainvoke(self, trip: Trip) -> AIMessage:
        while True:
            sent = await trip.anext()
            try:
                with trip.sending(sent):
                    answer = sent.model.ainvoke(trip.messages, sent.config, **sent.arguments)
                    message = await awithin(sent.deadline_s(), answer)
            except BaseException as error:  # noqa: BLE001
                trip.failed(sent, error)
            else:
                return trip.reply(sent, message)

    def _flow(self, trip: Trip) -> Iterator[AIMessageChunk]:
        while True:
            sent = trip.next()
            relay = Relay(trip, sent)
            flow: Any = sent.model.stream(trip.messages, sent.config, **sent.arguments)
            try:
                with trip.sending(sent):  # its context must not be held across a yield
                    first = within(sent.deadline_s(streamed=True), lambda: beginning(flow))  # noqa: B023
                for chunk in chain(first, flow):
                    yield from relay.take(chunk)
            except BaseException as error:  # noqa: BLE001
                relay.broke(error, resume=self.resume_streams)
            else:
                yield from relay.end()
                return
            finally:
                with suppress(ValueError):  # a thread that was left waits inside of it, and closes it
                    flow.close()

    async def _aflow(self, trip: Trip) -> AsyncGenerator[AIMessageChunk]:
        while True:
            sent = await trip.anext()
            relay = Relay(trip, sent)
            flow: Any = sent.model.astream(trip.messages, sent.config, **sent.arguments)
            try:
                with trip.sending(sent):
                    first = await awithin(sent.deadline_s(streamed=True), abeginning(flow))
                for each in first:
                    for passed in relay.take(each):
                        yield passed
                async for each in flow:
                    for passed in relay.take(each):
                        yield passed
            except BaseException as error:  # noqa: BLE001
                relay.broke(error, resume=self.resume_streams)
            else:
                for each in relay.end():
                    yield each
                return
            finally:
                await flow.aclose()

    def _trip(self, asked: Any, config: RunnableConfig | None, stop: Any, arguments: dict[str, Any]) -> Trip:
        own: RunnableConfig = {"tags": self.tags or [], "metadata": self.metadata or {}}
        config = ensure_config(config)
        if self.callbacks or self.tags or self.metadata:  # no run of this model's own bears them
            own["callbacks"] = self.callbacks or []
            config = merge_configs(config, own)
        messages = self._convert_input(asked).to_messages()
        return self._journey(messages, config, {**arguments, "stop": stop})

    def _inner_trip(
        self, messages: list[BaseMessage], stop: Any, run: Any, arguments: dict[str, Any]
    ) -> Trip:
        # The run that LangChain has opened is the one that handlers shall see, so the attempts are told none of them.
        config = ensure_config({"callbacks": [], "metadata": getattr(run, "metadata", None) or {}})
        parent = getattr(run, "parent_run_id", None)
        return self._journey(messages, config, {**arguments, "stop": stop}, parent)

    def _journey(
        self,
        messages: list[BaseMessage],
        config: RunnableConfig,
        arguments: dict[str, Any],
        parent: Any = None,
    ) -> Trip:
        if self._router is None:
            facts = [each.facts for each in self._served.values()]
            self._router = Router(self._handler.maestro, facts, baseline=self.baseline)
        return Trip(
            self._router,
            self._served,
            self._handler,
            messages=messages,
            config=config,
            arguments={name: value for name, value in arguments.items() if value is not None},
            sla=self.sla,
            parent=parent,
        )


def _answer(trip: Trip, sent: Sent) -> AIMessage:
    return sent.model.invoke(trip.messages, sent.config, **sent.arguments)


def _neutral(tool: Any) -> Any:
    """Return a tool as JSON; one that carries what only one maker understands is left as it is."""
    if isinstance(tool, dict) or getattr(tool, "extras", None):
        return tool
    return convert_to_openai_tool(tool)


def _configs(  # noqa: PLR0917 - the parts of LangChain's `generate`
    count: int, callbacks: Any, tags: Any, metadata: Any, run_name: Any, run_id: Any
) -> list[RunnableConfig]:
    parts = {"callbacks": callbacks, "tags": tags, "metadata": metadata, "run_name": run_name}
    config: Any = {name: value for name, value in parts.items() if value is not None}
    first = config if run_id is None else {**config, "run_id": run_id}  # an id names one run
    return [first, *(config for _ in range(count - 1))][:count]
