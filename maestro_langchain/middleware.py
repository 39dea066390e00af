"""The agent's door: it fits each model call to what the caps leave, waits, and ends the agent well."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from langchain.agents.middleware.types import AgentMiddleware, AgentState, ModelResponse, PrivateStateAttr
from langchain_core.messages import AIMessage, ToolMessage

from maestro_core import CapExceeded, Maestro
from maestro_core.doors import Terms
from maestro_core.exits import LastCalls, check_exit, farewell, stops_only_the_tool
from maestro_core.failures import classify, pause_s
from maestro_core.types import new_key

from ._door import begins, ended_at_limit, ends, goes_on, hands_over, seen_by
from ._passage import Passage, config_here, inside_tool, parent_of, passage_of, turn_of
from ._pause import ask_person, can_pause
from ._watch import Watch
from .callbacks import MaestroCallbackHandler, as_langchain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from langchain.agents.middleware.types import ModelRequest
    from langchain.tools.tool_node import ToolCallRequest

    from maestro_core.types import Reservation

__all__ = ["MaestroMiddleware"]

ExitBehavior = Literal["error", "end", "wrap_up", "interrupt"]


class _State(AgentState[Any]):
    maestro_run: NotRequired[Annotated[str, PrivateStateAttr]]
    maestro_turn: NotRequired[Annotated[str, PrivateStateAttr]]


class MaestroMiddleware(AgentMiddleware[_State, Any, Any]):
    """Caps an agent made with `create_agent`; put it first in `middleware`.

    Before each model call it holds the money, waits while other calls hold it, and sets an output limit that fits.
    The provider client's own retries are switched off for the call, and made here, each with a hold of its own.

    Args:
        maestro: The instance to use; `Maestro.default()` if None.
        exit_behavior: What happens at a cap. `"error"` raises `CapExceeded`. `"end"` ends the agent with a message that
            says why. `"wrap_up"` keeps back enough of the run's own cap for one last call without tools, and ends with
            its answer. `"interrupt"` pauses the graph for a person, who resumes it with
            `Command(resume={"add": "0.50"})` or `Command(resume="end")`; without a checkpointer it is `"error"`.
    """

    state_schema = _State

    def __init__(self, maestro: Maestro | None = None, *, exit_behavior: ExitBehavior = "error") -> None:
        super().__init__()
        check_exit(exit_behavior, ("error", "end", "wrap_up", "interrupt"))
        self._handler = MaestroCallbackHandler(maestro)
        self._exit = exit_behavior
        self._watch = Watch()
        self._last_calls = LastCalls()

    @property
    def maestro(self) -> Maestro:
        """The instance that this middleware reports to."""
        return self._handler.maestro

    # -- LangChain's hooks ----------------------------------------------------------------------------------------

    def before_agent(self, state: _State, runtime: Any) -> dict[str, Any]:
        """Name the run: a new turn is a new run, unless it is part of another's; a resume keeps its name."""
        config, turn = config_here(), new_key()
        where = self.maestro.runs.attribution(parent_of(config))
        run = where.dimensions.get("run") or turn
        self._watch.begin(turn, state["messages"])
        begins(self.maestro, turn, run, config, runtime)
        return {"maestro_run": run, "maestro_turn": turn}

    async def abefore_agent(self, state: _State, runtime: Any) -> dict[str, Any]:
        """As `before_agent`."""
        return self.before_agent(state, runtime)

    def after_agent(self, state: _State, runtime: Any) -> None:  # noqa: ARG002 - the signature is LangChain's
        """Warn, once, if another middleware has defeated this one."""
        turn = str(state.get("maestro_turn"))
        self._watch.end(turn, state["messages"])
        self.maestro.runs.leave(turn)

    async def aafter_agent(self, state: _State, runtime: Any) -> None:
        """As `after_agent`."""
        self.after_agent(state, runtime)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        """Reserve, send, settle; at a cap, leave as `exit_behavior` says."""
        goes_on(self.maestro, request.state, request.runtime)
        try:
            return self._pass(request, handler)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """As `wrap_model_call`; waits without blocking the event loop."""
        goes_on(self.maestro, request.state, request.runtime)
        try:
            return await self._apass(request, handler)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Tell the calls inside a tool whom they are for; hold for the tool itself, if it has a price."""
        goes_on(self.maestro, request.state, request.runtime)
        try:
            with self._tool_door(request):
                answer = handler(request)
        except CapExceeded as error:
            return self._not_run(request, error)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise
        hands_over(self.maestro, request.state, answer)
        return answer

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """As `wrap_tool_call`."""
        goes_on(self.maestro, request.state, request.runtime)
        try:
            with self._tool_door(request):
                answer = await handler(request)
        except CapExceeded as error:
            return self._not_run(request, error)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise
        hands_over(self.maestro, request.state, answer)
        return answer

    # -- one request ----------------------------------------------------------------------------------------------

    def _pass(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        passage = passage_of(self.maestro, request)
        for asked in itertools.count(1):
            try:
                return self._send(passage, handler)
            except CapExceeded as error:
                if self._pauses(error):
                    if ask_person(self.maestro, passage.run, error, asked):
                        continue
                    return _farewell(error)
                for last in self._last_passages(passage):
                    with suppress(CapExceeded):
                        return self._last_words(last, self._send(last, handler, last=True))
                return self._leave(passage, error)
        raise AssertionError  # a count has no end

    async def _apass(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        passage = passage_of(self.maestro, request)
        for asked in itertools.count(1):
            try:
                return await self._asend(passage, handler)
            except CapExceeded as error:
                if self._pauses(error):
                    if ask_person(self.maestro, passage.run, error, asked):
                        continue
                    return _farewell(error)
                for last in self._last_passages(passage):
                    with suppress(CapExceeded):
                        return self._last_words(last, await self._asend(last, handler, last=True))
                return self._leave(passage, error)
        raise AssertionError

    def _send(
        self, passage: Passage, handler: Callable[..., ModelResponse[Any]], *, last: bool = False
    ) -> ModelResponse[Any]:
        if passage.routed:
            with self._around(passage, last=last):
                response = handler(passage.request)
            self._watch.passed(passage.turn, response.result)
            return response
        doors = self.maestro.doors
        for attempt in range(passage.retries + 1):
            call = replace(passage.call, key=new_key())
            reservation = doors.reserve(
                call,
                fits=passage.fits,
                keeps_last=self._keeps_last(passage, last=last),
                last=last,
                parent_id=parent_of(config_here()),
            )
            try:
                with self._door(reservation, passage):
                    response = handler(passage.fitted(reservation))
            except Exception as error:
                failure = classify(error)
                if attempt == passage.retries or not failure.retries:
                    raise
                time.sleep(pause_s(failure, attempt=attempt))
            else:
                self._watch.passed(passage.turn, response.result)
                return self._checked(response, reservation)
        raise AssertionError  # the last attempt returns or raises

    async def _asend(
        self, passage: Passage, handler: Callable[..., Awaitable[ModelResponse[Any]]], *, last: bool = False
    ) -> ModelResponse[Any]:
        if passage.routed:
            with self._around(passage, last=last):
                response = await handler(passage.request)
            self._watch.passed(passage.turn, response.result)
            return response
        doors = self.maestro.doors
        for attempt in range(passage.retries + 1):
            call = replace(passage.call, key=new_key())
            keeps_last = self._keeps_last(passage, last=last)
            reservation = await doors.areserve(
                call, fits=passage.fits, keeps_last=keeps_last, last=last, parent_id=parent_of(config_here())
            )
            try:
                with self._door(reservation, passage):
                    response = await handler(passage.fitted(reservation))
            except Exception as error:
                failure = classify(error)
                if attempt == passage.retries or not failure.retries:
                    raise
                await asyncio.sleep(pause_s(failure, attempt=attempt))
            else:
                self._watch.passed(passage.turn, response.result)
                return self._checked(response, reservation)
        raise AssertionError

    @contextmanager
    def _door(self, reservation: Reservation, passage: Passage) -> Iterator[None]:
        with (
            seen_by(self._handler),
            self.maestro.doors.offer(reservation, passage.limit(reservation)),
            self.maestro.runs.around(reservation.call.attribution, turn_of(passage.request.state)),
        ):
            yield

    @contextmanager
    def _around(self, passage: Passage, *, last: bool) -> Iterator[None]:
        """A routed model is called inside the block; it reserves for itself, once it knows which endpoint is asked."""
        terms = Terms(keeps_last=self._keeps_last(passage, last=last), last=last, whole=True)
        with (
            seen_by(self._handler),
            self.maestro.doors.terms(terms),
            self.maestro.runs.around(passage.call.attribution, turn_of(passage.request.state)),
        ):
            yield

    @contextmanager
    def _tool_door(self, request: ToolCallRequest) -> Iterator[None]:
        # The handler is there so that models called inside a tool are governed, too; whatever they are, the terms of
        # the agent's own calls are not theirs.
        with (
            seen_by(self._handler),
            self.maestro.doors.terms(Terms()),
            self.maestro.runs.around(inside_tool(self.maestro, request), turn_of(request.state)),
        ):
            yield

    def _checked(self, response: ModelResponse[Any], reservation: Reservation) -> ModelResponse[Any]:
        """Mark a fitted answer; one that was cut because it was fitted has reached the cap."""
        fitted = reservation.fitted_output_tokens
        if fitted is None:
            return response
        for message in response.result:
            if isinstance(message, AIMessage):
                message.response_metadata["maestro"] = {"fitted_output_tokens": fitted}
                if ended_at_limit(message):
                    raise as_langchain(self.maestro.admission.cut(reservation, message.text))
        return response

    # -- leaving --------------------------------------------------------------------------------------------------

    def _keeps_last(self, passage: Passage, *, last: bool) -> bool:
        return self._exit == "wrap_up" and not passage.inner and not last

    def _last_passages(self, passage: Passage) -> Iterator[Passage]:
        """Yield what the run's last call may be, if it may have one."""
        if self._exit == "wrap_up" and not passage.inner and passage.run not in self._last_calls:
            yield from passage.last_ones()

    def _last_words(self, passage: Passage, response: ModelResponse[Any]) -> ModelResponse[Any]:
        """Return a last answer without tool calls, which nobody would answer; there is one in a run."""
        self._last_calls.add(passage.run)
        for message in response.result:
            if isinstance(message, AIMessage):
                message.tool_calls = []
                message.additional_kwargs.pop("tool_calls", None)
        return response

    def _leave(self, passage: Passage, error: CapExceeded) -> ModelResponse[Any] | AIMessage:
        if self._exit == "error" or passage.inner or self._exit == "interrupt":
            self._watch.refused(passage.turn, error)
            raise as_langchain(error)
        return _farewell(error)

    def _not_run(self, request: ToolCallRequest, error: CapExceeded) -> ToolMessage:
        """Return what the model is told of a refusal inside a tool, where the run may go on; else raise it."""
        if not stops_only_the_tool(error, self._exit):
            raise as_langchain(error)
        return ToolMessage(f"Not run: {error}", tool_call_id=request.tool_call["id"], status="error")

    def _pauses(self, error: CapExceeded) -> bool:
        return self._exit == "interrupt" and error.reason != "held" and can_pause()


def _farewell(error: CapExceeded) -> AIMessage:
    return AIMessage(farewell(error), response_metadata={"maestro": {"stopped": error.reason}})
