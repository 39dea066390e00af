"""The door of a routed LLM: as the gate, but each request goes to whichever endpoint the router chooses, or to the next."""

from __future__ import annotations

from contextlib import aclosing, closing, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock

from maestro_core.deadlines import awithin, within
from maestro_core.doors import Terms
from maestro_core.endpoints import asked
from maestro_core.journey import Journey
from maestro_core.router import Ask, Router

from ._convert import SLACK, data_of, to_input
from ._endpoints import LAST_TOOLS, Served
from ._models import LIMITS
from ._passage import Heard, Passage
from .gate import Chance, Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator, Mapping

    from maestro_core import Maestro
    from maestro_core.attempts import Attempt
    from maestro_core.sending import Sending

__all__ = ["Exchange", "Request"]

_IMAGES = frozenset({"image", "document", "video", "audio"})


class Request(Passage):
    """One call of a routed LLM."""

    __slots__ = ()

    def _without_tools(self) -> dict[str, Any]:
        kwargs = Passage._without_tools(self)  # noqa: SLF001 - the base's
        return {**kwargs, LAST_TOOLS: self.kwargs["tools"]} if self.kwargs.get("tools") else kwargs


class Exchange(Gate):
    """Sends the calls of one routed LLM.

    Args:
        maestro: Where the money is.
        router: The endpoints, neutrally.
        served: The endpoints, by name.
    """

    def __init__(self, maestro: Maestro, router: Router, served: Mapping[str, Served]) -> None:
        super().__init__(maestro)
        self.router = router
        self.served = served

    def _send(self, chance: Chance) -> Any:
        trip = _Trip(self, chance)
        while True:
            attempt = trip.journey.next()
            try:
                with trip.sending(attempt) as (messages, arguments):
                    chat = partial(self.served[attempt.name].llm.chat, messages, **arguments)
                    response = within(attempt.deadline_s(), chat)
            except BaseException as error:  # noqa: BLE001 - it is raised, unless another endpoint may do better
                trip.failed(attempt, error)
            else:
                return trip.answered(attempt, trip.heard.add(response))

    async def _asend(self, chance: Chance) -> Any:
        trip = _Trip(self, chance)
        while True:
            attempt = await trip.journey.anext()
            try:
                with trip.sending(attempt) as (messages, arguments):
                    answer = self.served[attempt.name].llm.achat(messages, **arguments)
                    response = await awithin(attempt.deadline_s(), answer)
            except BaseException as error:  # noqa: BLE001
                trip.failed(attempt, error)
            else:
                return trip.answered(attempt, trip.heard.add(response))

    def _stream(self, chance: Chance) -> Generator[Any, None, None]:
        trip = _Trip(self, chance)
        while True:
            attempt = trip.journey.next()
            try:
                with trip.sending(attempt) as (messages, arguments):
                    # Its context must not be held across a yield.
                    begin = partial(_begun, self.served[attempt.name].llm, messages, arguments)
                    first, chunks = within(attempt.deadline_s(streamed=True), begin)
                with closing(chunks):
                    for chunk in chain(first, chunks):
                        yield from trip.take(attempt, chunk)
            except BaseException as error:  # noqa: BLE001
                trip.failed(attempt, error)
            else:
                yield from trip.rest(attempt)
                return

    async def _astream(self, chance: Chance) -> AsyncGenerator[Any, None]:
        trip = _Trip(self, chance)
        while True:
            attempt = await trip.journey.anext()
            try:
                with trip.sending(attempt) as (messages, arguments):
                    begin = _abegun(self.served[attempt.name].llm, messages, arguments)
                    first, chunks = await awithin(attempt.deadline_s(streamed=True), begin)
                async with aclosing(chunks):
                    for chunk in first:
                        for each in trip.take(attempt, chunk):
                            yield each
                    async for chunk in chunks:
                        for each in trip.take(attempt, chunk):
                            yield each
            except BaseException as error:  # noqa: BLE001
                trip.failed(attempt, error)
            else:
                for each in trip.rest(attempt):
                    yield each
                return

    def heard_last(self, run: str) -> None:
        """A run has had its last call."""
        self._last_calls.add(run)


class _Trip:
    """One call on its way through the endpoints."""

    heard: Heard
    _sending: Sending

    def __init__(self, exchange: Exchange, chance: Chance) -> None:
        self._exchange = exchange
        self._chance = chance
        self._one = one = chance.passage
        own, call = one.kwargs["sla"]
        self._arguments = {name: value for name, value in one.kwargs.items() if name != "sla"}
        pinned = str(self._arguments.pop("model")) if self._arguments.get("model") in exchange.served else ""
        self._waiting: list[Any] = []
        terms = Terms(keeps_last=chance.keeps_last, last=chance.last, whole=one.by_agent)
        tools = self._arguments.get("tools") or self._arguments.get(LAST_TOOLS) or ()
        options = {
            name: value for name, value in self._arguments.items() if name not in {"tools", LAST_TOOLS}
        }
        ask = Ask(
            input=[SLACK, {name: value for name, value in options.items() if isinstance(value, str)}],
            history=to_input(one.payload),
            tools=[*map(_definition, tools), *data_of(options)],
            max_output_tokens=max(
                (value for name in LIMITS if isinstance(value := self._arguments.get(name), int)),
                default=None,
            ),
            needs=_needs(one, bool(self._arguments.get("tools"))),
            attribution=one.where,
            sla=asked(own, call),
            pinned=pinned,
        )
        with exchange.maestro.doors.terms(terms):
            self.journey = Journey(exchange.router, ask)

    @contextmanager
    def sending(self, attempt: Attempt) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """The request is sent inside the block, with these messages and arguments; of a stream, its first part too."""
        maestro, one = self._exchange.maestro, self._one
        served = self._exchange.served[attempt.name]
        self._waiting = []
        request = served.request(_messages(one), self._arguments, attempt.fitted_output_tokens)
        maestro.runs.ask(one.parent_id, attempt.reservation.call)
        with self.journey.sending(attempt), one.inside():
            self._sending, self.heard = one.sent(attempt.reservation, last=self._chance.last)
            try:
                with self._sending.inside():
                    yield request
            except BaseException as error:
                self._sending.fail(error, self.heard.usage)
                raise

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """An attempt ended in an error. Returns if another endpoint may take over; else raises it."""
        streamed = self._sending.streamed
        self._sending.fail(error, self.heard.usage)  # once: nothing happens if the block has told of it
        if not isinstance(error, Exception):
            self.journey.left(attempt)
            raise error
        self.journey.failed(attempt, error, streamed=streamed)

    def take(self, attempt: Attempt, chunk: Any) -> Iterator[Any]:
        """Yield the parts of a stream that can be passed on; until it says something another endpoint may answer."""
        self._waiting.append(self.heard.add(chunk))
        if not self._sending.streamed and not _says_something(chunk):
            return
        if not self._sending.streamed:
            self._sending.heard()
            self.journey.began(attempt)
        if _says_something(chunk):
            waiting, self._waiting = self._waiting, []
            yield from waiting

    def rest(self, attempt: Attempt) -> Iterator[Any]:
        """Yield the end of a stream; the decision is on the last part."""
        waiting = self._waiting
        if not waiting and self.heard.latest is not None:
            waiting = [self.heard.latest.model_copy(update={"delta": ""})]
        told = self.answered(attempt, waiting[-1] if waiting else None)
        yield from waiting[:-1]
        if told is not None:
            yield told

    def answered(self, attempt: Attempt, response: Any) -> Any:
        """Settle an answer; return it with the decision on it.

        Raises:
            CapExceeded: If it was cut because the cap left no more, and an agent wants whole answers.
        """
        heard = self.heard
        self._sending.settle(heard.usage, reply=heard.reply, reason="the provider reported no usage")
        told = self.journey.answered(attempt)
        if heard.last:
            self._exchange.heard_last(self._one.run)
        cut = self.journey.cut(attempt, heard.text) if heard.cut else None
        if cut is not None:
            raise cut
        if response is not None:
            response.additional_kwargs = {**response.additional_kwargs, "maestro": told}
        return response


def _messages(one: Passage) -> list[ChatMessage]:
    return [ChatMessage(one.payload)] if isinstance(one.payload, str) else list(one.payload)


def _definition(tool: Any) -> Any:
    return tool if isinstance(tool, dict) else tool.metadata.to_openai_tool(skip_length_check=True)


def _needs(one: Passage, tools: bool) -> frozenset[str]:  # noqa: FBT001 - private
    kinds = {
        block.block_type
        for message in one.payload
        if not isinstance(message, str)
        for block in message.blocks
    }
    found = {"tools"} if tools else set()
    return frozenset(found | ({"images"} if kinds & _IMAGES else set()))


def _begun(llm: Any, messages: list[Any], arguments: dict[str, Any]) -> tuple[list[Any], Any]:
    """Return a stream's parts up to the first that says something, and the rest of it."""
    first, chunks = [], llm.stream_chat(messages, **arguments)
    for chunk in chunks:
        first.append(chunk)
        if _says_something(chunk):
            break
    return first, chunks


async def _abegun(llm: Any, messages: list[Any], arguments: dict[str, Any]) -> tuple[list[Any], Any]:
    """As `_begun`."""
    first, chunks = [], await llm.astream_chat(messages, **arguments)
    async for chunk in chunks:
        first.append(chunk)
        if _says_something(chunk):
            break
    return first, chunks


def _says_something(chunk: Any) -> bool:
    return bool(chunk.delta) or any(isinstance(block, ToolCallBlock) for block in chunk.message.blocks)
