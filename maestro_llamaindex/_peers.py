"""Other instrumentations of LlamaIndex, whose spans we annotate instead of drawing our own beside them.

They keep a span for each of LlamaIndex's span ids, which are also what our runs are called by. What a call has cost must be
known before its span ends there. With `attach` that is inside the gate, which settles only when the model's method has
returned; so, where spans are annotated, a call is settled as soon as LlamaIndex tells of its end.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, slots=True)
class _Peer:
    """An instrumentation: the package and the class of its span handler, and where that keeps a span. None is public."""

    package: str  # while it is not loaded, it follows nothing
    handler: str
    find: Callable[[Any, str], Any]


def _traceloop(handler: Any, span_id: str) -> Any:
    held = handler.open_spans.get(span_id) or handler.waiting_for_streaming_spans.get(span_id)
    return getattr(held, "otel_span", None)  # it leaves OpenAI's to its instrumentation of OpenAI


def _openinference(handler: Any, span_id: str) -> Any:
    held = handler.open_spans.get(span_id) or handler._export_queue.find(span_id)  # noqa: SLF001 - it has no public way
    return getattr(held, "_otel_span", None)


_PEERS = (
    _Peer("openinference.instrumentation.llama_index", "_SpanHandler", _openinference),
    _Peer("opentelemetry.instrumentation.llamaindex", "OpenLLMetrySpanHandler", _traceloop),
    # LlamaIndex's own. A stream's span ends before the first chunk of it.
    _Peer("llama_index.observability.otel", "OTelCompatibleSpanHandler", lambda handler, id_: handler.all_spans.get(id_)),
)  # fmt: skip


def found_span(span_id: str) -> Callable[[], Span | None] | None:
    """Return how to find the span that another draws for one of LlamaIndex's, or None if there is no other."""
    find = _finder()
    return None if find is None else lambda: find(span_id)


def sent(maestro: Maestro, held: Reservation, parent_id: Hashable | None, heard: Heard) -> Sending:
    """Return a request on its way, which settles in time for another's span of it, if there is one."""
    find = _finder()
    return Sending(maestro, held, parent_id) if find is None else _Told(maestro, held, parent_id, heard, find)


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

    __slots__ = ("__weakref__", "_find", "_theirs", "span_id", "told")

    def __init__(
        self,
        maestro: Maestro,
        held: Reservation,
        parent_id: Hashable | None,
        told: Heard,
        find: Callable[[str], Any],
    ) -> None:
        self.span_id, self.told, self._find, self._theirs = "", told, find, None
        super().__init__(maestro, held, parent_id, found=self.theirs)

    def theirs(self) -> Span | None:
        """Return another's span of this request, or None. Once seen it is known, for it may end before its stream does."""
        self._theirs = self._theirs or self._find(self.span_id)
        return self._theirs

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
    """Hears before the others do that a request has ended: their spans of streams end with the same events."""

    @classmethod
    def class_name(cls) -> str:
        return "MaestroEnds"

    def handle(self, event: Any, **_: Any) -> None:
        told = _told.get(event.span_id or "")
        if told is None:
            return
        try:
            told.theirs()
            name = type(event).__name__
            if name in {"LLMChatEndEvent", "LLMCompletionEndEvent"} and event.response is not None:
                told.told.add(event.response)
                usage, reply = told.told.usage, told.told.reply
                told.settle(usage, reply=reply, reason="the provider reported no usage")
            elif name == "ExceptionEvent":
                told.fail(event.exception, told.told.usage)
        except Exception:  # noqa: BLE001 - whatever it was, the call goes on, and settles when it returns
            _log.exception("Maestro could not annotate a span of another instrumentation")


_ends = _Ends()


def _finder() -> Callable[[str], Span | None] | None:
    """Return how to find another's span by LlamaIndex's id of it, or None if nobody else follows LlamaIndex."""
    loaded = [peer for peer in _PEERS if peer.package in sys.modules]
    if not loaded:
        return None
    root = get_dispatcher()
    for handler in root.span_handlers:
        kind = type(handler)
        for peer in loaded:
            if kind.__name__ == peer.handler and kind.__module__.startswith(peer.package):
                if root.event_handlers[:1] != [_ends]:
                    rest = [each for each in root.event_handlers if each is not _ends]
                    root.event_handlers[:] = [_ends, *rest]
                return partial(_found, peer.find, handler)
    return None


def _found(find: Callable[[Any, str], Any], handler: Any, span_id: str) -> Any:
    try:
        return find(handler, span_id)
    except AttributeError:  # another version of it
        return None
