"""A handler for the whole process: every model that LlamaIndex runs is seen, whoever made it and in whatever thread."""

from __future__ import annotations

import threading
from functools import wraps
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from llama_index.core.callbacks.base import CallbackManager

from .callbacks import MaestroCallbackHandler

if TYPE_CHECKING:
    from maestro_core import Maestro

__all__ = ["install", "installed"]


class _Everywhere:
    """What every callback manager tells of its events, before its own handlers."""

    def __init__(self) -> None:
        self.handler: MaestroCallbackHandler | None = None
        self.given: Maestro | None = None
        self.registered = False
        self.lock = threading.Lock()


_everywhere = _Everywhere()


def install(maestro: Maestro | None = None) -> None:
    """Govern every model and embedding call that LlamaIndex makes in this process, from now on.

    Also of models that exist already, and in raw threads. As `MaestroCallbackHandler` it can stop a call, and cannot
    wait or fit one; what is attached as well counts once. Installing again does nothing; with another `Maestro`, that
    one takes over for whatever starts from then on. Setting `MAESTRO_AUTO=1` in the environment does the same to an
    application that is not edited. A class of LLMs that tells no callback manager of its calls needs `attach`.

    Args:
        maestro: The instance to use; `Maestro.default()`, built from settings on first use, if None.
    """
    with _everywhere.lock:
        _register()
        if _everywhere.handler is None or _everywhere.given is not maestro:
            _everywhere.given, _everywhere.handler = maestro, MaestroCallbackHandler(maestro)


def installed() -> bool:
    """Return whether the handler for the whole process is decided on."""
    return _everywhere.handler is not None


def _register() -> None:
    # LLMs keep the manager that they were made with, and LlamaIndex's own global handler reaches new managers only.
    if _everywhere.registered:
        return
    manager: Any = CallbackManager
    manager.on_event_start = _starting(manager.on_event_start)
    manager.on_event_end = _ending(manager.on_event_end)
    _everywhere.registered = True


def _starting(plain: Any) -> Any:
    @wraps(plain)
    def on_event_start(
        self: CallbackManager,
        event_type: Any,
        payload: Any = None,
        event_id: Any = None,
        *args: Any,
        **more: Any,
    ) -> Any:
        handler, event_id = _everywhere.handler, event_id or str(uuid4())
        if handler is None:
            return plain(self, event_type, payload, event_id, *args, **more)
        handler.on_event_start(event_type, payload, event_id=event_id)
        if handler.maestro.runs.call(event_id) is not None:
            _started[event_id] = handler
        try:
            return plain(self, event_type, payload, event_id, *args, **more)
        except BaseException as error:  # another handler does not let it go
            _started.pop(event_id, None)
            handler.maestro.runs.release(event_id, "not sent", error)
            raise

    return on_event_start


# A call that has started keeps the handler it started with, which settles it where it was reserved.
_started: dict[str, MaestroCallbackHandler] = {}


def _ending(plain: Any) -> Any:
    @wraps(plain)
    def on_event_end(
        self: CallbackManager, event_type: Any, payload: Any = None, event_id: Any = None, **more: Any
    ) -> None:
        handler = _started.pop(event_id or "", None)
        if handler is not None:
            handler.on_event_end(event_type, payload, event_id=event_id)
        plain(self, event_type, payload, event_id, **more)

    return on_event_end
