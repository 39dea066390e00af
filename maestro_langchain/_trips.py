"""One routed call of LangChain: the neutral journey, and what LangChain needs for each of its attempts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables.config import merge_configs

from maestro_core import SLA, CapExceeded
from maestro_core.endpoints import asked
from maestro_core.journey import Journey
from maestro_core.router import Ask
from maestro_core.types import Attribution, new_key

from ._convert import LIMITS, to_input
from ._door import ended_at_limit, seen_by, where
from ._endpoints import makers_of
from ._models import SLACK
from .callbacks import MaestroCallbackHandler, as_langchain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from langchain_core.messages import AIMessageChunk, BaseMessage
    from langchain_core.runnables import RunnableConfig

    from maestro_core.attempts import Attempt
    from maestro_core.router import Router

    from ._endpoints import Served

__all__ = ["Sent", "Trip"]

_GO_ON = "Your answer broke off. Continue it exactly where it ends: repeat nothing, and add no remark."
_IMAGES = frozenset({"image", "image_url", "input_image"})


class Sent:
    """One attempt, as the endpoint's own method is called with it."""

    def __init__(
        self, attempt: Attempt, served: Served, config: RunnableConfig, asked: Mapping[str, Any]
    ) -> None:
        self.attempt = attempt
        self.model = served.model
        self.config = config
        self.limit = served.limit(attempt.fitted_output_tokens)
        self.arguments = served.arguments(asked, attempt.fitted_output_tokens)
        self.deadline_s = attempt.deadline_s


class Trip:
    """One routed call.

    Args:
        router: The endpoints, neutrally.
        served: The endpoints, by name.
        handler: Sees the attempts.
        messages: What is sent.
        config: The caller's, complete.
        arguments: The call's: tools and their options, `stop`, `sla`, and whatever else the models take.
        sla: What the model asks for by itself.
        parent: The run around the call; the config's, if None.
    """

    def __init__(
        self,
        router: Router,
        served: Mapping[str, Served],
        handler: MaestroCallbackHandler,
        *,
        messages: Sequence[BaseMessage],
        config: RunnableConfig,
        arguments: Mapping[str, Any],
        sla: SLA,
        parent: Any = None,
    ) -> None:
        self.messages = list(messages)
        self._served = served
        self._handler = handler
        self._config = config
        # A model that is asked for by the name of an endpoint is that endpoint; another name is the endpoints' affair.
        pinned = str(arguments["model"]) if arguments.get("model") in served else ""
        mine = {"sla", "model"} if pinned else {"sla"}
        self._arguments = {name: value for name, value in arguments.items() if name not in mine}
        self._run_id = config.get("run_id")
        parent = parent or getattr(config.get("callbacks"), "parent_run_id", None)
        ask = Ask(
            input=SLACK,
            history=to_input(self.messages),
            tools=_measured(self._arguments),
            max_output_tokens=_limit(self._arguments),
            needs=_needs(self.messages, self._arguments),
            attribution=self._where(parent),
            sla=asked(sla, arguments.get("sla")),
            pinned=pinned,
        )
        self._journey = Journey(router, ask)

    def next(self) -> Sent:
        """Return the next attempt; errors as `Journey.next`."""
        try:
            return self._sent(self._journey.next())
        except CapExceeded as error:
            raise as_langchain(error) from None

    async def anext(self) -> Sent:
        """As `next`."""
        try:
            return self._sent(await self._journey.anext())
        except CapExceeded as error:
            raise as_langchain(error) from None

    @contextmanager
    def sending(self, sent: Sent) -> Iterator[None]:
        """The request is sent inside the block; of a stream, its first part is awaited there."""
        with seen_by(self._handler), self._journey.sending(sent.attempt, sent.limit):
            yield

    def failed(
        self, sent: Sent, error: BaseException, *, streamed: bool = False, resumes: bool = False
    ) -> None:
        """As `Journey.failed`; a caller that gives up ends the trip."""
        if isinstance(error, Exception):
            self._journey.failed(sent.attempt, error, streamed=streamed, resumes=resumes)
        else:
            self._journey.left(sent.attempt)
            raise error

    def left(self, sent: Sent) -> None:
        """As `Journey.left`."""
        self._journey.left(sent.attempt)

    def resume(self, text: str) -> None:
        """Go on elsewhere, from an answer that broke off after this text."""
        self.messages += [AIMessage(text), HumanMessage(_GO_ON)]
        self._journey = self._journey.resumed(to_input(self.messages))

    def began(self, sent: Sent) -> None:
        """As `Journey.began`."""
        self._journey.began(sent.attempt)

    def reply(self, sent: Sent, message: AIMessage) -> AIMessage:
        """Return an endpoint's message with the decision on it.

        Raises:
            CapExceeded: If it was cut because the cap left no more, and an agent's door wants whole answers.
        """
        told = self._journey.answered(sent.attempt)
        cut = self._journey.cut(sent.attempt, message.text) if ended_at_limit(message) else None
        if cut is not None:
            raise as_langchain(cut)
        return message.model_copy(
            update={"response_metadata": {**message.response_metadata, "maestro": told}}
        )

    def last(self, sent: Sent, chunk: AIMessageChunk) -> AIMessageChunk:
        """Return a stream's last chunk with the decision on it."""
        told = self._journey.answered(sent.attempt)
        return chunk.model_copy(update={"response_metadata": {**chunk.response_metadata, "maestro": told}})

    def _sent(self, attempt: Attempt) -> Sent:
        served = self._served[attempt.name]
        config = self._config
        if self._run_id is not None:  # it names one run, and each attempt is one
            config = {**config, "run_id": self._run_id}
            self._run_id = None
        else:
            config = {key: value for key, value in config.items() if key != "run_id"}  # type: ignore[assignment]
        if served.config:
            config = merge_configs(served.config, config)
        return Sent(attempt, served, config, self._arguments)

    def _where(self, parent: Any) -> Attribution:
        callbacks, metadata = self._config.get("callbacks"), self._config.get("metadata") or {}
        inherited = getattr(callbacks, "metadata", None) or {}
        found = where(self._handler.maestro, parent, {**inherited, **metadata}, {})
        # All attempts of a call belong to one run, also where none is around them.
        named = found.dimensions if "run" in found.dimensions else {**found.dimensions, "run": new_key()}
        agent, path = {**inherited, **metadata}.get("lc_agent_name"), found.path
        if agent and ("agent", agent) not in path:
            path = (*path, ("agent", str(agent)))
        return Attribution(named, path)


def _measured(arguments: Mapping[str, Any]) -> list[Any]:
    rest = {name: value for name, value in arguments.items() if name != "tools" and value is not None}
    return [*_definitions(arguments.get("tools") or ()), *([rest] if rest else [])]


def _definitions(tools: Sequence[Any]) -> list[Any]:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    return [tool if isinstance(tool, dict) else convert_to_openai_tool(tool) for tool in tools]


def _limit(arguments: Mapping[str, Any]) -> int | None:
    places = [arguments, *(arguments.get(name) or {} for name in ("model_kwargs", "extra_body"))]
    found = [place[name] for place in places for name in LIMITS if isinstance(place.get(name), int)]
    return max(found) if found else None


def _needs(messages: Sequence[BaseMessage], arguments: Mapping[str, Any]) -> frozenset[str]:
    found = set()
    if tools := arguments.get("tools"):
        found |= {"tools", *makers_of(tools)}
    if arguments.get("response_format") is not None:
        found.add("structured_output")
    if any(_has_image(message) for message in messages):
        found.add("images")
    return frozenset(found)


def _has_image(message: BaseMessage) -> bool:
    content = message.content
    return isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") in _IMAGES for block in content
    )
