"""The agent's door: it fits each model call to what the caps leave, waits, and ends the agent well."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from langchain.agents.middleware.types import AgentMiddleware, AgentState, ModelResponse, PrivateStateAttr
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from maestro_core import CapExceeded, Maestro
from maestro_core.doors import Terms
from maestro_core.exits import LAST_WORDS, LastCalls, check_exit, farewell, stops_only_the_tool
from maestro_core.failures import classify, pause_s
from maestro_core.money import parse_usd
from maestro_core.types import Attribution, new_key

from ._convert import ROUTED
from ._door import begins, ended_at_limit, ends, seen_by, where
from ._models import limit_settings, request_call, without_sdk_retries
from ._watch import Watch
from .callbacks import MaestroCallbackHandler, as_langchain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from langchain.agents.middleware.types import ModelRequest
    from langchain.tools.tool_node import ToolCallRequest
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import RunnableConfig

    from maestro_core.types import Call, Reservation

__all__ = ["MaestroMiddleware"]

ExitBehavior = Literal["error", "end", "wrap_up", "interrupt"]


class _State(AgentState[Any]):
    maestro_run: NotRequired[Annotated[str, PrivateStateAttr]]
    maestro_turn: NotRequired[Annotated[str, PrivateStateAttr]]


@dataclass(slots=True)
class _Passage:
    """One model request on its way through the door."""

    request: ModelRequest[Any]
    model: BaseChatModel
    retries: int
    call: Call
    inner: bool  # whether the agent runs inside a tool of another one
    fits: bool
    routed: bool = False

    def limit(self, reservation: Reservation) -> dict[str, int]:
        """Return the call arguments that set the output limit which is held for, if it was fitted."""
        tokens = reservation.fitted_output_tokens
        return (limit_settings(self.model, tokens) or {}) if tokens is not None else {}

    @property
    def turn(self) -> str:
        """The agent's run; empty where it began elsewhere."""
        return str(self.request.state.get("maestro_turn") or "")

    def fitted(self, reservation: Reservation) -> ModelRequest[Any]:
        """Return the request as it is sent: without the client's own retries, with the output limit that is held for."""
        limit = self.limit(reservation)
        if not limit and self.model is self.request.model:
            return self.request
        settings = {**self.request.model_settings, **limit}
        return self.request.override(model=self.model, model_settings=settings)


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
        config, turn = _config(), new_key()
        where = self.maestro.runs.attribution(_parent(config))
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
        try:
            return await self._apass(request, handler)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Tell the calls inside a tool whom they are for; hold for the tool itself, if it has a price."""
        try:
            with self._tool_door(request):
                return handler(request)
        except CapExceeded as error:
            return self._not_run(request, error)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """As `wrap_tool_call`."""
        try:
            with self._tool_door(request):
                return await handler(request)
        except CapExceeded as error:
            return self._not_run(request, error)
        except BaseException as error:
            ends(self.maestro, request.state, error)
            raise

    # -- one request ----------------------------------------------------------------------------------------------

    def _pass(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage:
        passage = self._passage(request)
        for asked in itertools.count(1):
            try:
                return self._send(passage, handler)
            except CapExceeded as error:
                if self._pauses(error):
                    if self._ask(passage, error, asked):
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
        passage = self._passage(request)
        for asked in itertools.count(1):
            try:
                return await self._asend(passage, handler)
            except CapExceeded as error:
                if self._pauses(error):
                    if self._ask(passage, error, asked):
                        continue
                    return _farewell(error)
                for last in self._last_passages(passage):
                    with suppress(CapExceeded):
                        return self._last_words(last, await self._asend(last, handler, last=True))
                return self._leave(passage, error)
        raise AssertionError

    def _send(
        self, passage: _Passage, handler: Callable[..., ModelResponse[Any]], *, last: bool = False
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
                parent_id=_parent(_config()),
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
        self, passage: _Passage, handler: Callable[..., Awaitable[ModelResponse[Any]]], *, last: bool = False
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
                call, fits=passage.fits, keeps_last=keeps_last, last=last, parent_id=_parent(_config())
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
    def _door(self, reservation: Reservation, passage: _Passage) -> Iterator[None]:
        with (
            seen_by(self._handler),
            self.maestro.doors.offer(reservation, passage.limit(reservation)),
            self.maestro.runs.around(reservation.call.attribution, _turn(passage.request.state)),
        ):
            yield

    @contextmanager
    def _around(self, passage: _Passage, *, last: bool) -> Iterator[None]:
        """A routed model is called inside the block; it reserves for itself, once it knows which endpoint is asked."""
        terms = Terms(keeps_last=self._keeps_last(passage, last=last), last=last, whole=True)
        with (
            seen_by(self._handler),
            self.maestro.doors.terms(terms),
            self.maestro.runs.around(passage.call.attribution, _turn(passage.request.state)),
        ):
            yield

    @contextmanager
    def _tool_door(self, request: ToolCallRequest) -> Iterator[None]:
        # The handler is there so that models called inside a tool are governed, too; whatever they are, the terms of
        # the agent's own calls are not theirs.
        with (
            seen_by(self._handler),
            self.maestro.doors.terms(Terms()),
            self.maestro.runs.around(self._inside_tool(request), _turn(request.state)),
        ):
            yield

    def _passage(self, request: ModelRequest[Any]) -> _Passage:
        config = _config()
        found, inner = self._where(config, str(request.state.get("maestro_run") or ""))
        routed = request.model._llm_type == ROUTED  # noqa: SLF001 - a model's own name for its kind
        model, retries = (request.model, 0) if routed else without_sdk_retries(request.model)
        call = request_call(request, found)
        fits = limit_settings(model, 1) is not None
        return _Passage(request, model, retries, call, inner, fits, routed)

    def _where(self, config: RunnableConfig, run: str) -> tuple[Attribution, bool]:
        """Return whom the agent's calls are for, and whether it runs inside a tool."""
        metadata = config.get("metadata") or {}
        runs = self.maestro.runs
        parent = _parent(config)
        if run:
            runs.name(parent, run)
        found = where(self.maestro, parent, metadata, {"run": run} if run else {})
        agent, path = metadata.get("lc_agent_name"), found.path
        inner = any(kind == "tool" for kind, _ in path)
        if agent and (not path or path[-1] != ("agent", agent)):
            path = (*path, ("agent", str(agent)))
        return Attribution(found.dimensions, path), inner

    def _inside_tool(self, request: ToolCallRequest) -> Attribution:
        found, _ = self._where(_config(), str((request.state or {}).get("maestro_run") or ""))
        name = str(request.tool_call["name"])
        path = found.path if found.path[-1:] == (("tool", name),) else (*found.path, ("tool", name))
        return Attribution(found.dimensions, path)

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

    def _keeps_last(self, passage: _Passage, *, last: bool) -> bool:
        return self._exit == "wrap_up" and not passage.inner and not last

    def _last_passages(self, passage: _Passage) -> Iterator[_Passage]:
        """Yield what the last call may be: on all there is, else on what the call before this one was made on."""
        run = passage.call.attribution.dimensions.get("run", "")
        if self._exit != "wrap_up" or passage.inner or run in self._last_calls:
            return
        messages = list(passage.request.messages)
        asked = [i for i, message in enumerate(messages) if isinstance(message, AIMessage)]
        for end in (len(messages), *([asked[-1]] if asked else [])):
            said = [*messages[:end], HumanMessage(LAST_WORDS)]
            request = passage.request.override(
                messages=said, tools=[], tool_choice=None, response_format=None
            )
            call = request_call(request, passage.call.attribution)
            yield replace(passage, request=request, call=call)

    def _last_words(self, passage: _Passage, response: ModelResponse[Any]) -> ModelResponse[Any]:
        """Return a last answer without tool calls, which nobody would answer; there is one in a run."""
        self._last_calls.add(passage.call.attribution.dimensions.get("run", ""))
        for message in response.result:
            if isinstance(message, AIMessage):
                message.tool_calls = []
                message.additional_kwargs.pop("tool_calls", None)
        return response

    def _leave(self, passage: _Passage, error: CapExceeded) -> ModelResponse[Any] | AIMessage:
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
        # Without a checkpointer langgraph would pause quietly, and nobody could ever resume.
        saved = _config().get("configurable", {}).get("__pregel_checkpointer") is not None
        return self._exit == "interrupt" and saved and error.reason != "held"

    def _ask(self, passage: _Passage, error: CapExceeded, asked: int) -> bool:
        """Pause the graph for a person; return whether the run goes on, with the money that was granted.

        langgraph runs the node again from the top after a resume and replays the answers so far, so a grant is keyed by
        the node's run and the ordinal of the question: it counts once.
        """
        from langgraph.types import interrupt

        run = passage.call.attribution.dimensions.get("run", "")
        answer = interrupt(
            {"reason": str(error), "run": run, "needed": str(error.needed), "bucket": error.bucket}
        )
        if answer == "end":
            return False
        if not isinstance(answer, dict) or not answer.keys() <= {"add", "by", "reason"}:
            raise ValueError(
                f'resume={answer!r}: answer {{"add": "0.50"}} (US dollars; "by", "reason" may follow) or "end"'
            )
        namespace = _config().get("configurable", {}).get("checkpoint_ns", "")
        add = parse_usd(answer.get("add", 0), name="add")
        self.maestro.admission.resume(
            run, f"{namespace}#{asked}", add_nanos=add, by=answer.get("by"), reason=answer.get("reason")
        )
        return True


def _farewell(error: CapExceeded) -> AIMessage:
    return AIMessage(farewell(error), response_metadata={"maestro": {"stopped": error.reason}})


def _turn(state: Any) -> str | None:
    return (state or {}).get("maestro_turn")


def _config() -> RunnableConfig:
    from langgraph.config import get_config

    return get_config()


def _parent(config: RunnableConfig) -> Any:
    return getattr(config.get("callbacks"), "parent_run_id", None)
