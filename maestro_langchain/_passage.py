"""One model request of an agent on its way through the middleware: what is sent, whom it is for, what a last one may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, HumanMessage

from maestro_core.exits import LAST_WORDS
from maestro_core.types import Attribution

from ._convert import ROUTED
from ._door import where
from ._models import limit_settings, request_call, without_sdk_retries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain.agents.middleware.types import ModelRequest
    from langchain.tools.tool_node import ToolCallRequest
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import RunnableConfig

    from maestro_core import Maestro
    from maestro_core.types import Call, Reservation

__all__ = ["Passage", "config_here", "inside_tool", "parent_of", "passage_of", "turn_of"]


@dataclass(frozen=True, slots=True)
class Passage:
    """One model request on its way through the door.

    Args:
        request: As the agent makes it.
        model: Its model, without the client's own retries.
        retries: How often they would have sent it again; the door does.
        call: What is reserved for.
        inner: Whether the agent runs inside a tool of another one.
        fits: Whether the request's output limit can be set.
        routed: Whether the model reserves for itself, once it knows which endpoint is asked.
    """

    request: ModelRequest[Any]
    model: BaseChatModel
    retries: int
    call: Call
    inner: bool
    fits: bool
    routed: bool = False

    @property
    def run(self) -> str:
        """The run that it is part of."""
        return self.call.attribution.dimensions.get("run", "")

    @property
    def turn(self) -> str:
        """The agent's run, as the middleware calls it; empty where it began elsewhere."""
        return turn_of(self.request.state) or ""

    def limit(self, reservation: Reservation) -> dict[str, int]:
        """Return the call arguments that set the output limit which is held for, if it was fitted."""
        tokens = reservation.fitted_output_tokens
        return (limit_settings(self.model, tokens) or {}) if tokens is not None else {}

    def fitted(self, reservation: Reservation) -> ModelRequest[Any]:
        """Return the request as it is sent: without the client's own retries, with the output limit that is held for."""
        limit = self.limit(reservation)
        if not limit and self.model is self.request.model:
            return self.request
        settings = {**self.request.model_settings, **limit}
        return self.request.override(model=self.model, model_settings=settings)

    def last_ones(self) -> Iterator[Passage]:
        """Yield what a last call may be: on all there is, else on what the call before this one was made on."""
        messages = list(self.request.messages)
        asked = [i for i, message in enumerate(messages) if isinstance(message, AIMessage)]
        for end in (len(messages), *([asked[-1]] if asked else [])):
            said = [*messages[:end], HumanMessage(LAST_WORDS)]
            request = self.request.override(messages=said, tools=[], tool_choice=None, response_format=None)
            yield replace(self, request=request, call=request_call(request, self.call.attribution))


def passage_of(maestro: Maestro, request: ModelRequest[Any]) -> Passage:
    """Return a request of the agent around the caller, for that agent."""
    found, inner = _whom(maestro, request.state)
    routed = request.model._llm_type == ROUTED  # noqa: SLF001 - a model's own name for its kind
    model, retries = (request.model, 0) if routed else without_sdk_retries(request.model)
    fits = limit_settings(model, 1) is not None
    return Passage(request, model, retries, request_call(request, found), inner, fits, routed)


def inside_tool(maestro: Maestro, request: ToolCallRequest) -> Attribution:
    """Return whom calls are for that a tool of the agent around the caller makes."""
    found, _ = _whom(maestro, request.state)
    name = str(request.tool_call["name"])
    path = found.path if found.path[-1:] == (("tool", name),) else (*found.path, ("tool", name))
    return Attribution(found.dimensions, path)


def _whom(maestro: Maestro, state: Any) -> tuple[Attribution, bool]:
    """Return whom the agent's calls are for, and whether it runs inside a tool."""
    config, run = config_here(), str((state or {}).get("maestro_run") or "")
    metadata, parent = config.get("metadata") or {}, parent_of(config)
    if run:
        maestro.runs.name(parent, run)
    found = where(maestro, parent, metadata, {"run": run} if run else {})
    agent, path = metadata.get("lc_agent_name"), found.path
    inner = any(kind == "tool" for kind, _ in path)
    if agent and (not path or path[-1] != ("agent", agent)):
        path = (*path, ("agent", str(agent)))
    return Attribution(found.dimensions, path), inner


def turn_of(state: Any) -> str | None:
    """Return what the middleware calls the agent's run whose state this is, or None."""
    return (state or {}).get("maestro_turn")


def config_here() -> RunnableConfig:
    """Return LangGraph's configuration of the node around the caller."""
    from langgraph.config import get_config  # only agents need it, and they have it

    return get_config()


def parent_of(config: RunnableConfig) -> Any:
    """Return the id of the run that a node is, or None."""
    return getattr(config.get("callbacks"), "parent_run_id", None)
