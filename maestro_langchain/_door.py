"""What every door of LangChain needs: a handler for the calls inside it, whom they are for, and how an answer ended."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from langchain_core.tracers.context import register_configure_hook

from maestro_core import CapExceeded
from maestro_core.exits import CUT

from ._convert import dimensions
from ._peers import others_follow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

    from maestro_core import Maestro
    from maestro_core.types import Attribution

    from .callbacks import MaestroCallbackHandler

__all__ = ["begins", "ended_at_limit", "ends", "fault", "goes_on", "hands_over", "seen_by", "where"]


# LangChain asks this variable for a handler whenever it configures a run, so that a call through a door is seen
# although the user attached no handler.
_handler: ContextVar[MaestroCallbackHandler | None] = ContextVar("maestro_handler", default=None)
register_configure_hook(_handler, inheritable=False)


@contextmanager
def seen_by(handler: MaestroCallbackHandler) -> Iterator[None]:
    """Model calls that start inside the block are seen by this handler."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


def where(maestro: Maestro, parent: Any, metadata: Mapping[str, Any], own: Mapping[str, str]) -> Attribution:
    """Return whom a call below a run is for: what the run tree says, and what the run's metadata says.

    Args:
        maestro: Whose runs they are.
        parent: The id of the run around the call, or None.
        metadata: That run's.
        own: Further dimensions; the metadata's win.
    """
    found = {**own, **dimensions(metadata, maestro.settings.dimensions)}
    return maestro.runs.attribution(parent, found)


def begins(maestro: Maestro, turn: str, run: str, config: RunnableConfig, runtime: Any) -> None:
    """An agent begins: unless somebody draws it already, its calls and tools stand below a span of it.

    Args:
        maestro: Whose run it is.
        turn: What the middleware calls it.
        run: The name of the outermost run.
        config: The node's that tells of it.
        runtime: LangGraph's.
    """
    callbacks, metadata = config.get("callbacks"), config.get("metadata") or {}
    if maestro.settings.spans != "own" and others_follow(callbacks):
        return
    maestro.runs.begin(
        turn,
        getattr(callbacks, "parent_run_id", None),
        agent=str(metadata.get("lc_agent_name") or ""),
        run=run,
        dimensions=dimensions(metadata, maestro.settings.dimensions),
        life=runtime.stream_writer,  # made anew for each run of a graph
    )


def goes_on(maestro: Maestro, state: Any, runtime: Any) -> None:
    """An agent's model or tool is called: an agent that was paused, here or in another process, begins again."""
    turn = (state or {}).get("maestro_turn")
    if turn and maestro.runs.resumes(turn, runtime.stream_writer):
        from langgraph.config import get_config  # there is no agent without it

        begins(maestro, turn, str(state.get("maestro_run") or turn), get_config(), runtime)


def hands_over(maestro: Maestro, state: Any, result: Any) -> None:
    """A tool has answered: with a command for the graph around its agent, the agent's turn is over."""
    turn = (state or {}).get("maestro_turn")
    if turn and getattr(result, "graph", None) is not None:
        maestro.runs.leave(turn)


def ends(maestro: Maestro, state: Any, error: BaseException) -> None:
    """An agent's model or tool has raised this through its middleware, which ends the agent; or pauses it."""
    if turn := (state or {}).get("maestro_turn"):
        maestro.runs.leave(turn, fault(error))


def fault(error: BaseException) -> BaseException | None:
    """Return the error that ended a run, or None if nothing has failed: a graph pauses, and hands over, by raising."""
    langgraph = sys.modules.get("langgraph.errors")
    steers = langgraph is not None and isinstance(error, langgraph.GraphBubbleUp)
    return None if steers and not isinstance(error, CapExceeded) else error


def ended_at_limit(message: BaseMessage) -> bool:
    """Return whether an answer ended because its output limit was reached."""
    said = message.response_metadata
    ended = {str(said.get(key)) for key in ("finish_reason", "stop_reason")}
    details = said.get("incomplete_details") or {}
    return bool((ended | {details.get("reason")}) & CUT)
