"""The framework's runs that are in flight: from a call up to the agent and tools around it.

An adapter reports starts and ends by the framework's own run ids; this keeps the tree, the spans and the open
reservations, the same way for every framework.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .attribution import current
from .circles import UNSEEN
from .errors import CapExceeded, MaestroError
from .forks import tell_child
from .types import Attribution, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from opentelemetry.trace import Span

    from .circles import Use
    from .doors import Offer
    from .loops import Scope
    from .maestro import Maestro
    from .telemetry import Drawing, Operation
    from .types import Record, Reservation, Step
    from .usage import Usage

__all__ = ["RunKind", "Runs"]

_log = logging.getLogger("maestro")
_T = TypeVar("_T")
_MOST_ENDED = 2_000

RunKind = Literal["chain", "agent", "tool"]
_OPERATIONS: dict[RunKind, Operation] = {"agent": "invoke_agent", "tool": "execute_tool"}


# Whom calls are for where no run tree reaches: set by middleware around its model and tool calls.
_around: ContextVar[Attribution | None] = ContextVar("maestro_around", default=None)
# Which run of an agent it is, likewise.
_instance: ContextVar[Hashable] = ContextVar("maestro_instance", default=None)


def _operation(call: Call) -> Operation:
    return "embeddings" if call.operation == "embeddings" else "chat"


@dataclass(slots=True)
class _Run:
    root_id: Hashable
    path: tuple[Step, ...]
    span: Span | None  # the nearest that we drew
    parent: _Run | None = None
    drawing: Drawing | None = None
    cost_nanos: int = 0  # of all calls inside
    paid: Reservation | None = None  # for the use of a tool that has a price
    calls: set[Hashable] = field(default_factory=set)  # open calls, kept at the root only
    instance: Hashable = None  # the innermost tool's run, or the outermost run
    use: Use | None = None  # of a tool, for whoever looks for loops


@dataclass(slots=True)
class _OpenCall:
    reservation: Reservation
    seen: Call  # as the handler saw it; the door that reserved may have seen it before other middleware
    drawing: Drawing | None
    parent: _Run | None
    root: _Run | None
    operation: Operation
    began_ns: int
    scope: Scope
    first_chunk_ns: int = 0
    offer: Offer | None = None


class Runs:
    """Runs in flight of one Maestro. Safe from any thread; every method is idempotent on `run_id`."""

    def __init__(self, maestro: Maestro) -> None:
        self._maestro = maestro
        self._runs: dict[Hashable, _Run] = {}
        # A sync tool of a cancelled async agent runs on in its thread: what it starts belongs to the run that has
        # ended, and is not a new run with a fresh cap.
        self._ended: dict[Hashable, _Run] = {}
        self._calls: dict[Hashable, _OpenCall] = {}
        # Calls that were left, whose end may be reported yet: the truth then corrects what is presumed.
        self._abandoned: dict[Hashable, _OpenCall] = {}
        self._names: dict[Hashable, str] = {}
        tell_child(self._forked)

    def _forked(self) -> None:
        # Calls that are open belong to the process that this one was forked from. Runs stay: what the child does
        # inside of one is a part of it.
        self._calls.clear()
        for run in (*self._runs.values(), *self._ended.values()):
            run.calls.clear()
            run.paid = None

    def enter(
        self,
        run_id: Hashable,
        parent_id: Hashable | None,
        *,
        kind: RunKind = "chain",
        name: str = "",
        dimensions: Mapping[str, str] | None = None,
        arguments: object = None,
        found: Callable[[], Span | None] | None = None,
    ) -> None:
        """A run has begun below its parent; agents and tools become part of the path of every call inside.

        Args:
            run_id: The framework's.
            parent_id: The run around it.
            kind: What it is.
            name: The agent's or tool's.
            dimensions: Those that the framework's metadata gives.
            arguments: What a tool is asked; only a hash of it is kept, to find loops.
            found: Finds the span that another instrumentation draws for this run, if there is one.

        Raises:
            CapExceeded: If it is a tool with a price, and a cap does not admit one more use.
        """
        if run_id in self._runs:
            return
        parent = self._find(parent_id)
        owner = self._scope(parent)
        around = _around.get()
        path = parent.path if parent else around.path if around else ()
        run = _Run(parent.root_id if parent else run_id, path, parent.span if parent else None, parent)
        if kind != "chain":
            # Middleware around a tool has put the tool into the path already.
            run.path = path if not parent and path[-1:] == ((kind, name),) else (*path, (kind, name))
            where = self.attribution(run, dimensions)
            if kind == "tool" and self._maestro.admission.quotes.sells(name):
                paid = Call(
                    provider="tool", model=name, operation="tool", attribution=where, name=f"tool {name}"
                )
                run.paid = self._maestro.reserve(paid)
            run.drawing = self._maestro.telemetry.start(
                _OPERATIONS[kind], name, where, parent=run.span, found=found
            )
            run.span = (run.drawing and run.drawing.span) or run.span
            if kind == "tool":
                run.use = self._maestro.circles.begin(owner, name, where, arguments)
        run.instance = run_id if kind == "tool" or not parent else parent.instance
        self._runs[run_id] = run

    def leave(
        self,
        run_id: Hashable,
        error: BaseException | None = None,
        *,
        result: object = UNSEEN,
        failed: bool = False,
    ) -> None:
        """A run has ended. With the outermost one, calls inside whose end was not reported are presumed spent.

        One that goes on in a thread of its own corrects that when it ends.

        Args:
            run_id: The framework's.
            error: What ended it.
            result: What a tool answered, if that is seen; only a hash of it is kept, to find loops.
            failed: Whether a tool's answer reports an error.
        """
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        self._ended[run_id] = run
        while len(self._ended) > _MOST_ENDED:
            oldest = next(iter(self._ended))
            self._names.pop(oldest, None)
            forgotten = self._ended.pop(oldest, None)
            for call_id in forgotten.calls if forgotten else ():
                self._calls.pop(call_id, None)
        paid = run.paid
        if paid is not None:
            self._safely(lambda: self._maestro.settle(paid, None))
        if run.drawing is not None:
            run.drawing.end(error=error, run_cost_nanos=run.cost_nanos)
        if run.use is not None:
            self._maestro.circles.end(run.use, result, failed=failed, error=error)
        if run.root_id == run_id:
            self._maestro.circles.forget(run_id)
        keys = [
            self._calls[call_id].reservation.key for call_id in tuple(run.calls) if call_id in self._calls
        ]
        if keys:
            self._safely(lambda: self._maestro.presume(keys))

    def agent(self, run_id: Hashable | None) -> str | None:
        """Return the innermost agent around a run, without looking past the innermost tool."""
        run = self._find(run_id)
        kind, name = run.path[-1] if run and run.path else ("", "")
        return name if kind == "agent" else None

    def attribution(
        self, run: _Run | Hashable | None, dimensions: Mapping[str, str] | None = None
    ) -> Attribution:
        """Return whom a call below `run` is for: metadata dimensions, then the surrounding `attribution(...)`."""
        found = run if isinstance(run, _Run) else self._find(run)
        around = _around.get()
        own = {"run": self._names.get(found.root_id, str(found.root_id))} if found else {}
        if around is not None:
            own = {**around.dimensions, **({} if "run" in around.dimensions else own)}
        path = found.path if found else around.path if around else ()
        return Attribution({**own, **(dimensions or {}), **current()}, path)

    def name(self, run_id: Hashable | None, name: str) -> None:
        """Call the outermost run around `run_id` so, in caps and reports; a resumed run keeps its name."""
        found = self._find(run_id)
        if found is None or self._names.get(found.root_id) == name:
            return
        self._names[found.root_id] = name
        root = self._find(found.root_id)
        if root is not None and root.drawing is not None:
            root.drawing.belongs(self.attribution(root))

    @contextmanager
    def around(self, attribution: Attribution, instance: Hashable = None) -> Iterator[None]:
        """Calls inside the block are for this, where the framework's run tree says nothing else.

        `instance` tells one run of an agent from the next; None: that of the block around.
        """
        inside = _instance.get() if instance is None else instance
        token, one = _around.set(attribution), _instance.set(inside)
        try:
            yield
        finally:
            _instance.reset(one)
            _around.reset(token)

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
            call: The call; its `attribution.dimensions` are those that the framework's metadata gives.
            settings: The arguments that the call is made with, constructor and call merged.
            found: Finds the span that another instrumentation draws for this run, if there is one.

        Raises:
            CapExceeded, PriceNotFound, LedgerUnavailable: As `Maestro.reserve`; nothing was sent.
        """
        if run_id in self._calls:
            return
        parent = self._find(parent_id)
        own = {} if parent or _around.get() else {"run": str(run_id)}
        where = self.attribution(parent, {**own, **call.attribution.dimensions})
        offered = self._maestro.doors.take(call, settings)
        if offered is not None:
            where = offered.call.attribution
        call = replace(call, attribution=where)
        self._maestro.circles.ask(self._scope(parent), call)
        drawing = self._draw(call, parent, found)
        try:
            reservation = offered or self._maestro.reserve(call)
        except BaseException as error:
            _not_sent(drawing, parent, error)
            raise
        opened = self._open(run_id, parent, reservation, call, drawing)
        opened.offer = self._maestro.doors.offered() if offered else None

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
        opened = self._open(call.key, parent, reservation, call, self._draw(call, parent, found))
        offer = self._maestro.doors.offered()
        if offer is not None and offer.reservation.key == call.key:
            opened.offer, offer.taken = offer, True

    def _draw(
        self, call: Call, parent: _Run | None, found: Callable[[], Span | None] | None = None
    ) -> Drawing | None:
        above = parent.span if parent else None
        return self._maestro.telemetry.start(
            _operation(call), call.model, call.attribution, parent=above, call=call, found=found
        )

    def _open(
        self,
        run_id: Hashable,
        parent: _Run | None,
        reservation: Reservation,
        seen: Call,
        drawing: Drawing | None,
    ) -> _OpenCall:
        root = self._runs.get(parent.root_id) if parent else None
        if root:
            root.calls.add(run_id)
        began_ns, scope = time.perf_counter_ns(), self._scope(parent)
        opened = self._calls[run_id] = _OpenCall(
            reservation, seen, drawing, parent, root, _operation(seen), began_ns, scope
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
        record = self._safely(lambda: self._maestro.settle_with(call.reservation, usage, facts))
        if call.offer is not None:
            call.offer.record, call.offer.usage = record, usage
        self._tell(call, taken_ns, record, error)
        return record

    def release(self, run_id: Hashable, reason: str, error: BaseException | None = None) -> None:
        """A call has provably not been billed: its money is free again."""
        call = self._pop(run_id)
        if call is not None:
            taken_ns = time.perf_counter_ns() - call.began_ns
            self._safely(lambda: self._maestro.release(call.reservation, reason))
            self._tell(call, taken_ns, None, error)

    def abandon(self, key: str) -> None:
        """A call was left without its end being reported: presume it spent and end its span.

        If it ends after all, that is settled as ever. Nothing happens to one that is closed already. Never raises: whoever leaves it has an error of its own.
        """
        for run_id in [i for i, call in tuple(self._calls.items()) if call.reservation.key == key]:
            call = self._pop(run_id)
            if call is not None:
                self._safely(lambda: self._maestro.presume([key]))
                if call.drawing is not None:
                    call.drawing.end()
                # Its span and the totals around it are closed; only the money is open.
                self._abandoned[run_id] = replace(call, drawing=None, parent=None)
                if len(self._abandoned) > _MOST_ENDED:
                    with suppress(RuntimeError):  # another thread is at it, too
                        self._abandoned.pop(next(iter(self._abandoned)), None)

    def _tell(
        self, call: _OpenCall, taken_ns: int, record: Record | None, error: BaseException | None
    ) -> None:
        """Show a call that has ended, on its span, on those around it and in the metrics."""
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
        self._maestro.telemetry.metrics.operated(
            call.operation,
            call.reservation.call,
            taken_ns / 1e9,
            record=record,
            error=error,
            first_chunk_s=first_chunk_s,
            span=drawing.span if drawing else None,
        )

    def _scope(self, parent: _Run | None) -> Scope:
        """Return which agent, in which run of it, calls a model or a tool below `parent`."""
        if parent is not None:
            return parent.instance, parent.path
        around = _around.get()
        path = around.path if around else ()
        # Middleware around a tool has put the tool into the path already.
        return _instance.get(), path[:-1] if path and path[-1][0] == "tool" else path

    def _find(self, run_id: Hashable | None) -> _Run | None:
        return self._runs.get(run_id) or self._ended.get(run_id)

    def _pop(self, run_id: Hashable) -> _OpenCall | None:
        call = self._calls.pop(run_id, None) or self._abandoned.pop(run_id, None)
        if call is not None and call.root is not None:
            call.root.calls.discard(run_id)
        return call

    def _safely(self, settle: Callable[[], _T]) -> _T | None:
        # The call was made and its answer is good: a ledger that fails now must not take the answer away.
        try:
            return settle()
        except MaestroError:
            _log.exception("a call could not be settled; its money stays held until it is presumed spent")
            return None


def _not_sent(drawing: Drawing | None, parent: _Run | None, error: BaseException) -> None:
    """Show a refusal on the call's own span, or, where others draw it and never will, on the run around it."""
    if drawing is not None and drawing.span is None:
        while parent is not None and parent.drawing is None:
            parent = parent.parent
        drawing = parent.drawing if parent else None
        if drawing is not None and isinstance(error, CapExceeded):
            drawing.refused(error)
        return
    if drawing is not None:
        if isinstance(error, CapExceeded):
            drawing.refused(error)
        drawing.end(error=error)
