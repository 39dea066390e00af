"""A handler for the whole process: every model that LangChain runs is seen, whoever made it and in whatever thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from langchain_core.tracers.context import register_configure_hook

from .callbacks import MaestroCallbackHandler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import ContextVar

    from maestro_core import Maestro

__all__ = ["install", "installed", "lent"]


class _Everywhere:
    """What LangChain asks for a handler whenever it configures a run, in place of a context variable.

    A context variable would be given its value for good by its default; any other value is lost in raw threads, and
    in generators that are consumed later.
    """

    def __init__(self) -> None:
        self.handler: MaestroCallbackHandler | None = None
        self.given: Maestro | None = None
        self.registered = False
        self.lent = False
        self.lock = threading.Lock()

    def get(self) -> MaestroCallbackHandler | None:
        return self.handler


_everywhere = _Everywhere()


def install(maestro: Maestro | None = None) -> None:
    """Govern every model call that LangChain makes in this process, from now on.

    Also in raw threads, in generators that are consumed later, and where nobody passed a handler. A call that a
    handler, a middleware or a wrapper of the same `Maestro` sees as well counts once. Installing again does nothing;
    with another `Maestro`, that one takes over for whatever starts from then on. Setting `MAESTRO_AUTO=1` in the
    environment does the same to an application that is not edited.

    Args:
        maestro: The instance to use; `Maestro.default()`, built from settings on first use, if None.
    """
    with _everywhere.lock:
        _register()
        if _everywhere.handler is None or _everywhere.given is not maestro:
            # A call that has started keeps the handler it started with, which settles it where it was reserved.
            _everywhere.given, _everywhere.handler = maestro, MaestroCallbackHandler(maestro)


def installed() -> bool:
    """Return whether the handler for the whole process is decided on."""
    return _everywhere.lent or _everywhere.handler is not None


@contextmanager
def lent(maestro: Maestro | None) -> Iterator[None]:
    """Inside the block, this `Maestro` is installed, or none is; afterwards all is as it was. For tests and proofs."""
    with _everywhere.lock:
        _register()
        before = _everywhere.given, _everywhere.handler, _everywhere.lent
        handler = MaestroCallbackHandler(maestro) if maestro else None
        _everywhere.given, _everywhere.handler, _everywhere.lent = maestro, handler, True
    try:
        yield
    finally:
        _everywhere.given, _everywhere.handler, _everywhere.lent = before


def _register() -> None:
    if not _everywhere.registered:
        # Inheritable, because langgraph hands its nodes what they inherit and asks no hooks again.
        register_configure_hook(cast("ContextVar[Any]", _everywhere), inheritable=True)
        _everywhere.registered = True
