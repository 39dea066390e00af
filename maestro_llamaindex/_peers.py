"""OpenInference's instrumentation of LlamaIndex, whose spans we annotate instead of drawing our own beside them.

It keeps a span for each of LlamaIndex's span ids, which are also what our runs are called by. What a call has cost must be
known before its span ends there. With `attach` that is inside the gate, which settles only when the model's method has
returned; so, where spans are annotated, a call is settled as soon as LlamaIndex tells of its end.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler

from maestro_core.sending import Sending

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from opentelemetry.trace import Span

    from maestro_core import Maestro
    from maestro_core.types import Reservation

    from ._passage import Heard

__all__ = ["ended", "entered", "found_span", "sent"]

_log = logging.getLogger("maestro")
# While it is not loaded, nobody else can be following a run.
_PACKAGE = "openinference.instrumentation.llama_index"


def found_span(span_id: str) -> Callable[[], Span | None] | None:
    """Return how to find the span that OpenInference draws for one of LlamaIndex's, or None if it draws none."""
    peer = _peer()
    return None if peer is None else lambda: _found(peer, span_id)


def sent(maestro: Maestro, held: Reservation, parent_id: Hashable | None, heard: Heard) -> Sending:
    """Return a request on its way, which settles in time for OpenInference's span of it, if there is one."""
    peer = _peer()
    return Sending(maestro, held, parent_id) if peer is None else _Told(maestro, held, parent_id, heard, peer)


def entered(span_id: str) -> None:
    """A method of a model begins: if a request is on its way here that has no span yet, this is it."""
    told = _here.get()
    if told is not None and not told.span_id:
        told.span_id = span_id
        _told[span_id] = told


def ended(span_id: str, error: BaseException | None) -> None:
    """A method of a model has failed. One that returns has told by an event, or its stream will."""
    told = _told.get(span_id)
    if told is not None and error is not None:
        told.fail(error, told.told.usage)


class _Told(Sending):
    """A request on its way whose end LlamaIndex's events tell."""

    __slots__ = ("__weakref__", "span_id", "told")

    def __init__(
        self, maestro: Maestro, held: Reservation, parent_id: Hashable | None, told: Heard, peer: Any
    ) -> None:
        self.span_id, self.told = "", told
        super().__init__(maestro, held, parent_id, found=lambda: _found(peer, self.span_id))

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Also, a span that begins inside the block is this request's."""
        token = _here.set(self)
        try:
            with Sending.inside(self):
                yield
        finally:
            _here.reset(token)


_here: ContextVar[_Told | None] = ContextVar("maestro_told", default=None)
_told: WeakValueDictionary[str, _Told] = WeakValueDictionary()


class _Ends(BaseEventHandler):
    """Hears before OpenInference does that a request has ended: its spans of streams end with the same events."""

    @classmethod
    def class_name(cls) -> str:
        return "MaestroEnds"

    def handle(self, event: Any, **_: Any) -> None:
        told = _told.get(event.span_id or "")
        if told is None:
            return
        try:
            name = type(event).__name__
            if name in {"LLMChatEndEvent", "LLMCompletionEndEvent"} and event.response is not None:
                told.told.add(event.response)
                usage, reply = told.told.usage, told.told.reply
                told.settle(usage, reply=reply, reason="the provider reported no usage")
            elif name == "ExceptionEvent":
                told.fail(event.exception, told.told.usage)
        except Exception:  # noqa: BLE001 - whatever it was, the call goes on, and settles when it returns
            _log.exception("Maestro could not annotate a span of OpenInference's")


_ends = _Ends()


def _peer() -> Any:
    if _PACKAGE not in sys.modules:
        return None
    root = get_dispatcher()
    for handler in root.span_handlers:
        kind = type(handler)
        if kind.__module__.startswith(_PACKAGE) and kind.__name__ == "_SpanHandler":
            if root.event_handlers[:1] != [_ends]:
                root.event_handlers[:] = [_ends, *(each for each in root.event_handlers if each is not _ends)]
            return handler
    return None


def _found(peer: Any, span_id: str) -> Any:
    try:
        found = peer.open_spans.get(span_id) or peer._export_queue.find(span_id)  # noqa: SLF001 - it has no public way
    except AttributeError:  # another version of it
        return None
    return getattr(found, "_otel_span", None)
