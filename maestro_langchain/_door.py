"""What every door of LangChain needs: a handler for the calls inside it, whom they are for, and how an answer ended."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from langchain_core.tracers.context import register_configure_hook

from maestro_core.exits import CUT

from ._convert import dimensions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from langchain_core.messages import BaseMessage

    from maestro_core import Maestro
    from maestro_core.types import Attribution

    from .callbacks import MaestroCallbackHandler

__all__ = ["ended_at_limit", "seen_by", "where"]


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


def ended_at_limit(message: BaseMessage) -> bool:
    """Return whether an answer ended because its output limit was reached."""
    said = message.response_metadata
    ended = {str(said.get(key)) for key in ("finish_reason", "stop_reason")}
    details = said.get("incomplete_details") or {}
    return bool((ended | {details.get("reason")}) & CUT)
