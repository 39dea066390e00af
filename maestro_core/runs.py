"""The calls that are open in a framework's runs: reserved for, shown on spans, settled or left.

An adapter reports starts and ends by the framework's own run ids; this keeps them the same way for every framework.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .errors import CapExceeded, MaestroError
from .forks import tell_child
from .runtree import not_sent, upwards
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from opentelemetry.trace import Span

    from .doors import Offer
    from .loops import Scope
    from .maestro import Maestro
    from .runtree import Run
    from .telemetry import Drawing, Operation
    from .types import Call, Record, Reservation
    from .usage import Usage

__all__ = ["Runs"]

_log = logging.getLogger("maestro")
_T = TypeVar("_T")
_P = ParamSpec("_P")
_MOST_ABANDONED = 2_000


def _operation(call: Call) -> Operation:
    return "embeddings" if call.operation == "embeddings" else "chat"


@dataclass(slots=True)
class _OpenCall:
    reservation: Reservation
    seen: Call  # as the handler saw it; the door that reserved may have seen it before other middleware
    drawing: Drawing | None
    parent: Run | None
    root: Run | None
    began_ns: int
    scope: Scope
    first_chunk_ns: int = 0
    offer: Offer | None = None


class Runs(Turns):
    """The runs of one Maestro and the calls that are open in them."""

    def __init__(self, maestro: Maestro) -> None:
        super().__init__(maestro)
        self._calls: dict[Hashable, _OpenCall] = {}
        # Calls that were left, whose end may be reported yet: the truth then corrects what is presumed.
        self._abandoned: dict[Hashable, _OpenCall] = {}
        tell_child(self._forked)

    def _forked(self) -> None:
        self._calls.clear()
        super()._forked()

    def _settle_use(self, paid: Reservation) -> None:
        self._safely(self._maestro.settle, paid, None)

    def _left(self, run: Run, error: BaseException | None) -> None:
        if run.calls:
            # One that ends just now, in another thread, is not left.
            found = [self._calls.get(call_id) for call_id in tuple(run.calls)]
            self._presume([call for call in found if call is not None], error)

    def _presume(self, calls: Sequence[_OpenCall], error: BaseException | None) -> None:
        """Calls are left: they count as spent, and are shown so. If they end after all, only the money is corrected."""
        found = self._safely(self._maestro.presume, [call.reservation.key for call in calls]) or ()
        records = {record.key: record for record in found}
        for call in calls:
            record = records.get(call.reservation.key)
            self._show(call, record, error)
            call.drawing = call.parent = None

    def _forgotten(self, run: Run) -> None:
        for call_id in run.calls:
            self._calls.pop(call_id, None)

    def reserve(
        self,
        run_id: Hashable,
        parent_id: Hashable | None,
        call: Call,
        settings: Mapping[str, object] = MappingProxyType({}),
        *,
        found: Callable[[], Span | None] | None = None,
    ) -> None:
        """Hold the money for a call that is about to be sent under this run id.

        Args:
            run_id: The framework's.
            parent_id: The run around it.
            call: The call, which is for `whom`.
            settings: The arguments that the call is made with, constructor and call merged.
            found: Finds the span that another instrumentation draws for this run, if there is one.

        Raises:
            CapExceeded, PriceNotFound, LedgerUnavailable: As `Maestro.reserve`; nothing was sent.
        """
        if run_id in self._calls:
            return
        parent = self._find(parent_id)
        offered = self._maestro.doors.take(call, settings)
        if offered is not None:
            call = replace(call, attribution=offered.call.attribution)
        scope = self._scope(parent)
        self._maestro.circles.ask(scope, call)
        above = parent or self._turn()
        drawing = self._draw(call, above, found)
        try:
            reservation = offered or self._maestro.reserve(call)
        except BaseException as error:
            not_sent(drawing, above, error)
            raise
        opened = self._open(run_id, above, reservation, call, drawing, scope)
        opened.offer = self._maestro.doors.offered() if offered else None

    def refused(self, parent_id: Hashable | None, call: Call, error: CapExceeded) -> None:
        """A door was not admitted a call below a run: show it there, as a call that was not sent."""
        parent = self._find(parent_id) or self._turn() or self._latest(call.attribution)
        drawn = next((run.drawing for run in upwards(parent) if run.drawing is not None), None)
        # Where another instrumentation draws the tree, it draws no call that was not sent; nor do we.
        drawing = drawn if drawn is not None and drawn.span is None else self._draw(call, parent)
        not_sent(drawing, parent, error)

    def ask(self, parent_id: Hashable | None, call: Call) -> None:
        """A door is about to reserve for a call below a run: whoever looks for loops may latch it before."""
        self._maestro.circles.ask(self._scope(self._find(parent_id)), call)

    def adopt(
        self,
        reservation: Reservation,
        parent_id: Hashable | None,
        *,
        found: Callable[[], Span | None] | None = None,
    ) -> None:
        """A door sends the call that it reserved for by itself: it is open from here, under the reservation's key.

        `found` is as in `reserve`. Tell `ask` of the call before it is reserved for.
        """
        parent, call = self._find(parent_id), reservation.call
        above = parent or self._turn()
        drawing = self._draw(call, above, found)
        opened = self._open(call.key, above, reservation, call, drawing, self._scope(parent))
        offer = self._maestro.doors.offered()
        if offer is not None and offer.reservation.key == call.key:
            opened.offer, offer.taken = offer, True

    def _draw(
        self, call: Call, parent: Run | None, found: Callable[[], Span | None] | None = None
    ) -> Drawing | None:
        if self._gone:
            self.sweep()
        above = parent.span if parent else None
        return self._maestro.telemetry.start(
            _operation(call), call.model, call.attribution, parent=above, call=call, found=found
        )

    def _open(  # noqa: PLR0917 - what is known of a call that begins
        self,
        run_id: Hashable,
        parent: Run | None,
        reservation: Reservation,
        seen: Call,
        drawing: Drawing | None,
        scope: Scope,
    ) -> _OpenCall:
        root = parent.root if parent else None
        if root is not None and root.ended:
            root = None
        if root is not None:
            root.calls.add(run_id)
        opened = self._calls[run_id] = _OpenCall(
            reservation, seen, drawing, parent, root, time.perf_counter_ns(), scope
        )
        return opened

    def call(self, run_id: Hashable) -> Call | None:
        """Return the call of a run id whose end has not been reported, or None."""
        found = self._calls.get(run_id) or self._abandoned.get(run_id)
        return found.reservation.call if found else None

    def streamed(self, run_id: Hashable) -> None:
        """A part of a call's answer has arrived."""
        call = self._calls.get(run_id)
        if call is not None and not call.first_chunk_ns:
            call.first_chunk_ns = time.perf_counter_ns()

    def settle(
        self,
        run_id: Hashable,
        usage: Usage | None,
        *,
        error: BaseException | None = None,
        reason: str = "",
        detail: Mapping[str, Any] | None = None,
        reply: Mapping[str, object] | None = None,
    ) -> Record | None:
        """A call has ended. Without usage it settles at its hold, marked as estimated; `reason` says why.

        `reply` is what the model answered, in the form of the call's `history`; only fingerprinted.
        """
        call = self._pop(run_id)
        if call is None:
            return None
        if usage is not None:
            held, seen = call.reservation.call, call.seen
            same = held.history is seen.history and held.tools is seen.tools
            self._maestro.admission.learn((held,) if same else (held, seen), usage, reply)
        if reply is not None:
            self._maestro.circles.say(call.scope, call.seen, reply)
        taken_ns = time.perf_counter_ns() - call.began_ns
        facts = {**(detail or {}), "latency_ms": taken_ns // 1_000_000}
        if reason:
            facts["reason"] = reason
        if error is not None:
            facts["error"] = type(error).__qualname__
        if usage is not None and call.offer is not None and call.offer.tells is not None:
            facts |= call.offer.tells(usage)
        record = self._safely(self._maestro.settle_with, call.reservation, usage, facts)
        if call.offer is not None:
            call.offer.record, call.offer.usage = record, usage
        if reply is not None and call.drawing is not None and call.drawing.captures:
            call.drawing.said(call.reservation.call, reply, record)
        self._tell(call, taken_ns, record, error)
        return record

    def release(self, run_id: Hashable, reason: str, error: BaseException | None = None) -> None:
        """A call has provably not been billed: its money is free again."""
        call = self._pop(run_id)
        if call is not None:
            taken_ns = time.perf_counter_ns() - call.began_ns
            self._safely(self._maestro.release, call.reservation, reason)
            self._tell(call, taken_ns, None, error)

    def abandon(self, key: str, error: BaseException | None = None) -> None:
        """A call was left without its end being reported: presume it spent and end its span; `error` is what left it.

        If it ends after all, that is settled as ever. Nothing happens to one that is closed already. Never raises: whoever
        leaves it has an error of its own.
        """
        for run_id in [i for i, call in tuple(self._calls.items()) if call.reservation.key == key]:
            call = self._pop(run_id)
            if call is not None:
                self._presume([call], error)
                self._abandoned[run_id] = call
                if len(self._abandoned) > _MOST_ABANDONED:
                    with suppress(RuntimeError):  # another thread is at it, too
                        self._abandoned.pop(next(iter(self._abandoned)), None)

    def _tell(
        self, call: _OpenCall, taken_ns: int, record: Record | None, error: BaseException | None
    ) -> None:
        """Show a call that has ended, on its span, on those around it and in the metrics."""
        drawing = call.drawing
        first_chunk_s = self._show(call, record, error)
        self._maestro.telemetry.metrics.operated(
            _operation(call.seen),
            call.reservation.call,
            taken_ns / 1e9,
            record=record,
            error=error,
            first_chunk_s=first_chunk_s,
            span=drawing.span if drawing else None,
        )

    def _show(self, call: _OpenCall, record: Record | None, error: BaseException | None) -> float | None:
        """Close a call's span, and add its cost to those around it; return when the first part of its answer came."""
        drawing, first_chunk_s = call.drawing, None
        if call.first_chunk_ns:
            first_chunk_s = (call.first_chunk_ns - call.began_ns) / 1e9
        around, cost_nanos = call.parent, record.cost_nanos if record else 0
        while around is not None and cost_nanos:
            around.cost_nanos += cost_nanos
            around = around.parent
        if drawing is not None:
            drawing.first_chunk_s = first_chunk_s
            if drawing.end(record, error) is False:
                self._maestro.telemetry.missed()
            if call.parent is not None:
                call.parent.latest_ns = time.time_ns()
        return first_chunk_s

    def _pop(self, run_id: Hashable) -> _OpenCall | None:
        call = self._calls.pop(run_id, None) or self._abandoned.pop(run_id, None)
        if call is not None and call.root is not None:
            call.root.calls.discard(run_id)
        return call

    def _safely(self, verb: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        # The call was made and its answer is good: a ledger that fails now must not take the answer away.
        try:
            return verb(*args, **kwargs)
        except MaestroError:
            _log.exception("a call could not be settled; its money stays held until it is presumed spent")
            return None
