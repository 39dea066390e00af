"""Other instrumentations of LangChain, whose spans we annotate instead of drawing our own beside them.

All of them are callback handlers that keep a span for each run id. Which ones follow a run stands in one place only: in
the callback manager that is just telling its handlers of it. No event carries it, so it is looked for among the callers;
if it cannot be found there, we draw our own spans.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from langchain_core.callbacks import BaseCallbackHandler
    from opentelemetry.trace import Span

__all__ = ["found_span", "others_follow"]

_MOST_FRAMES = 10

# Where they live. While none is loaded, nobody else can be following a run.
_PACKAGES = ("openinference", "opentelemetry.instrumentation", "langfuse")


def _openinference(handler: Any, run_id: UUID) -> Any:
    return handler.get_span(run_id)


def _traceloop(handler: Any, run_id: UUID) -> Any:
    return handler.spans[run_id].span


def _official(handler: Any, run_id: UUID) -> Any:
    return handler._invocation_manager.get_invocation(run_id=run_id).span  # noqa: SLF001 - it has no public way


def _langfuse(handler: Any, run_id: UUID) -> Any:
    return handler._runs[run_id]._otel_span  # noqa: SLF001 - it has no public way


# By module and class of the handler.
_PEERS: dict[tuple[str, str], Callable[[Any, UUID], Any]] = {
    ("openinference", "OpenInferenceTracer"): _openinference,
    ("opentelemetry", "TraceloopCallbackHandler"): _traceloop,
    ("opentelemetry", "OpenTelemetryLangChainCallbackHandler"): _official,
    ("langfuse", "LangchainCallbackHandler"): _langfuse,
}


def others_follow(callbacks: Any) -> bool:
    """Return whether another instrumentation is among the handlers of a run, as its configuration has them."""
    return not sys.modules.keys().isdisjoint(_PACKAGES) and any(
        (type(handler).__module__.partition(".")[0], type(handler).__name__) in _PEERS
        for handler in getattr(callbacks, "handlers", ())
    )


def found_span(ours: BaseCallbackHandler, run_id: UUID) -> Callable[[], Span | None] | None:
    """Return how to find the span that another instrumentation draws for a run, or None if there is none.

    To be called while LangChain delivers the run's start. `ours` is put first among the run's handlers, because a span
    that has ended takes no attributes, and those before us end theirs before we know the cost.
    """
    if sys.modules.keys().isdisjoint(_PACKAGES):
        return None
    handlers = _being_told(ours)
    if handlers is None:
        return None
    for handler in handlers:
        kind = type(handler)
        find = _PEERS.get((kind.__module__.partition(".")[0], kind.__name__))
        if find is not None:
            if handlers[0] is not ours:
                # LangChain may be going through this very list: those before us are done, and move one place on.
                handlers.remove(ours)
                handlers.insert(0, ours)
            return _finder(find, handler, run_id)
    return None


def _finder(find: Callable[[Any, UUID], Any], handler: Any, run_id: UUID) -> Callable[[], Span | None]:
    def found() -> Span | None:
        try:
            return find(handler, run_id)  # type: ignore[no-any-return]
        except (AttributeError, KeyError, TypeError):  # not there (yet), or another version of it
            return None

    return found


def _being_told(ours: BaseCallbackHandler) -> list[BaseCallbackHandler] | None:
    frame = sys._getframe(1).f_back  # noqa: SLF001 - see above
    for _ in range(_MOST_FRAMES):
        if frame is None:
            return None
        manager = frame.f_locals.get("self")
        if isinstance(manager, BaseCallbackManager):
            return manager.handlers if ours in manager.handlers else None
        frame = frame.f_back
    return None
