"""The door that every LangChain model call passes: a synchronous callback handler that may say no."""

from __future__ import annotations

import logging
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from langchain_core.callbacks import BaseCallbackHandler

from maestro_core import CapExceeded, Maestro
from maestro_core.failures import classify

from ._convert import (
    ROUTED,
    dimensions,
    is_cache_hit,
    message_of,
    to_call,
    to_input,
    to_reply,
    to_result,
    to_usage,
)
from ._door import fault
from ._peers import found_span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

__all__ = ["MaestroCallbackHandler", "as_langchain"]

_log = logging.getLogger("maestro")

# What the run of a graph is called that has no name, and what says in a run's metadata that it is one.
_GRAPH, _GRAPHS = "LangGraph", frozenset({"langchain_create_agent", "langgraph"})

_P = ParamSpec("_P")


def as_langchain(error: CapExceeded) -> CapExceeded:
    """Return a refusal as LangChain has to see it."""
    from ._errors import LangChainCapExceeded  # looks for langgraph, which costs time to import

    return (
        error
        if isinstance(error, LangChainCapExceeded)
        else LangChainCapExceeded(*error.args, **error.__dict__)
    )


def _harmless(method: Callable[_P, None]) -> Callable[_P, None]:
    # The handler has raise_error set, so that a refusal stops a call. Anything else that goes wrong here must not.
    @wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except CapExceeded as error:  # of a tool that has a price
            raise as_langchain(error) from None
        except Exception:  # noqa: BLE001 - whatever it was, the agent goes on
            _log.exception("Maestro could not follow a LangChain event; calls go on")

    return guarded


class MaestroCallbackHandler(BaseCallbackHandler):
    """Prices, attributes and caps every model call of whatever it is attached to.

    Pass it as `config={"callbacks": [MaestroCallbackHandler()]}`, first in the list, or to a model's constructor.
    It cannot change a request, so under a cap it holds the most that the request may cost: give models an output
    limit. Several handlers of one `Maestro` count a call once.

    Args:
        maestro: The instance to use; `Maestro.default()`, built from settings on first use, if None.

    Raises:
        CapExceeded: Out of `invoke`, `stream`, `batch` and their like, before anything is sent.
        PriceNotFound: Likewise, under a cap, for a model without a known price.
    """

    # An asynchronous handler's errors never propagate when it is driven by synchronous code, and a handler that does
    # not run inline does not see the caller's context.
    raise_error = True
    run_inline = True

    # LangChain asks at every event; as the base class has them, each is a call of a property.
    ignore_llm = ignore_chat_model = ignore_chain = ignore_agent = ignore_retriever = False

    def __init__(self, maestro: Maestro | None = None) -> None:
        if maestro is not None:
            self.maestro = maestro
        self._streamed: set[UUID] = set()

    @cached_property
    def maestro(self) -> Maestro:
        """The instance that this handler reports to."""
        return Maestro.default()

    # -- model calls ----------------------------------------------------------------------------------------------

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,  # noqa: ARG002 - the signature is LangChain's
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reserve for a chat model's call; raise if a cap does not admit it."""
        first, *others = map(to_input, messages)  # LangChain opens a run for each list; others are for safety
        self._reserve(serialized, others, first, run_id, parent_run_id, metadata, kwargs)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,  # noqa: ARG002
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reserve for a completion model's call."""
        self._reserve(serialized, prompts, (), run_id, parent_run_id, metadata, kwargs)

    def _reserve(  # noqa: PLR0917 - the parts of one event
        self,
        serialized: Mapping[str, Any],
        payload: Sequence[object],
        history: Sequence[Mapping[str, object]],
        run_id: UUID,
        parent_id: UUID | None,
        metadata: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        params = kwargs.get("invocation_params") or {}
        if params.get("_type") == ROUTED:
            return
        maestro, found = self.maestro, found_span(self, run_id)
        where = maestro.runs.whom(run_id, parent_id, dimensions(metadata, maestro.settings.dimensions))
        call = to_call(serialized, payload, history, metadata, params, where)
        try:
            maestro.runs.reserve(run_id, parent_id, call, params, found=found)
        except CapExceeded as error:
            raise as_langchain(error) from None

    @_harmless
    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Remember that output has arrived: from here on, a failure may be billed."""
        self._streamed.add(run_id)
        self.maestro.runs.streamed(run_id)

    @_harmless
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Settle a call at what the provider reported, or at its hold."""
        if self._streamed:
            self._streamed.discard(run_id)
        runs = self.maestro.runs
        call, message = runs.call(run_id), message_of(response)
        if call is None:
            return
        if is_cache_hit(response, message):
            runs.release(run_id, "answered from LangChain's cache")
            return
        usage = to_usage(call.provider, response)
        reason = "" if usage else "the provider reported no usage"
        runs.settle(run_id, usage, reason=reason, reply=to_reply(message))

    @_harmless
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Release a call that provably was not billed; settle any other at its hold."""
        streamed = run_id in self._streamed
        self._streamed.discard(run_id)
        why = classify(error, streamed=streamed).unbilled
        if why:
            self.maestro.runs.release(run_id, why, error)
        else:
            self.maestro.runs.settle(run_id, None, error=error, reason="ended without usage")

    # -- the runs around them -------------------------------------------------------------------------------------

    @_harmless
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,  # noqa: ARG002
        inputs: Any,  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Follow the run tree; a run that bears its agent's name is that agent; a graph is one, too."""
        agent, runs = metadata.get("lc_agent_name") if metadata else None, self.maestro.runs
        if agent:
            begins = name == agent and runs.agent(parent_run_id) != agent
        else:
            graph = metadata is not None and metadata.get("ls_integration") in _GRAPHS
            begins = (
                graph and (name == _GRAPH or parent_run_id is None) and runs.kind(parent_run_id) != "agent"
            )
        if begins:
            own = dimensions(metadata, self.maestro.settings.dimensions)
            runs.enter(
                run_id,
                parent_run_id,
                kind="agent",
                name=agent or "",
                dimensions=own,
                found=found_span(self, run_id),
            )
        else:
            runs.enter(run_id, parent_run_id)

    @_harmless
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Follow the run tree."""
        self.maestro.runs.leave(run_id)

    @_harmless
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Follow the run tree."""
        self.maestro.runs.leave(run_id, fault(error))

    @_harmless
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        inputs: dict[str, Any] | None = None,
        tool_call_id: str | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Follow the run tree; calls inside belong to the tool."""
        called = name or (serialized or {}).get("name") or "tool"
        own = dimensions(metadata, self.maestro.settings.dimensions)
        self.maestro.runs.enter(
            run_id,
            parent_run_id,
            kind="tool",
            name=called,
            dimensions=own,
            arguments=input_str if inputs is None else inputs,
            tool_call_id=tool_call_id or "",
            found=found_span(self, run_id),
        )

    @_harmless
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Follow the run tree."""
        result, failed = to_result(output)
        self.maestro.runs.leave(run_id, result=result, failed=failed)

    @_harmless
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Follow the run tree."""
        self.maestro.runs.leave(run_id, fault(error))

    @_harmless
    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,  # noqa: ARG002
        query: str,  # noqa: ARG002
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Follow the run tree: a retriever may call a model."""
        self.maestro.runs.enter(run_id, parent_run_id)

    @_harmless
    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Follow the run tree."""
        self.maestro.runs.leave(run_id)

    @_harmless
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Follow the run tree."""
        self.maestro.runs.leave(run_id, fault(error))
