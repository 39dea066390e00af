"""The tree of a framework's runs: agents and tools around every call, and whom the calls inside are for."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Literal

from .attribution import current
from .circles import UNSEEN
from .errors import CapExceeded
from .forks import fork_safe_lock
from .types import Attribution, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from opentelemetry.trace import Span

    from .circles import Use
    from .loops import Scope
    from .maestro import Maestro
    from .telemetry import Drawing, Operation
    from .types import Reservation, Step

__all__ = ["Run", "RunKind", "RunTree", "around_here", "not_sent", "upwards"]

# How many runs at least that have ended are known; at most twice as many.
_MOST_ENDED = 2_000

RunKind = Literal["chain", "agent", "tool"]
_OPERATIONS: dict[RunKind, Operation] = {"agent": "invoke_agent", "tool": "execute_tool"}


# Whom calls are for where no run tree reaches: set by middleware around its model and tool calls.
_around: ContextVar[Attribution | None] = ContextVar("maestro_around", default=None)
# Which run of an agent it is, likewise.
_instance: ContextVar[Hashable] = ContextVar("maestro_instance", default=None)
_numbers = count()


class Run:
    """A run that is in flight, or has ended lately: an agent's, a tool's, or an outermost one."""

    __slots__ = (
        "calls",
        "cost_nanos",
        "drawing",
        "ended",
        "instance",
        "kind",
        "latest_ns",
        "name",
        "paid",
        "parent",
        "path",
        "root",
        "run_id",
        "span",
        "use",
    )

    def __init__(
        self, run_id: Hashable, parent: Run | None, path: tuple[Step, ...], *, tool: bool = False
    ) -> None:
        self.run_id = run_id
        self.kind: RunKind = "chain"
        self.parent = parent
        self.path = path
        self.span: Span | None = None  # the nearest that we drew
        self.drawing: Drawing | None = None
        self.cost_nanos = 0  # of all calls inside
        self.latest_ns = 0  # when something inside has ended last, since 1970
        self.paid: Reservation | None = None  # for the use of a tool that has a price
        self.use: Use | None = None  # of a tool, for whoever looks for loops
        self.ended = False
        if parent is None:
            self.root, self.name = self, str(run_id)
            self.calls: set[Hashable] = set()  # open ones
        else:
            self.root, self.span = parent.root, parent.span
        # Tells the innermost tool's run, or the outermost run, from others.
        self.instance: Hashable = parent.instance if parent is not None and not tool else next(_numbers)


class RunTree(ABC):
    """The runs of one Maestro. Safe from any thread; every method is idempotent on `run_id`."""

    def __init__(self, maestro: Maestro) -> None:
        self._maestro = maestro
        # By each id that a framework has for it: of a chain inside, which nothing tells from the run around it, too.
        self._runs: dict[Hashable, Run] = {}
        # A sync tool of a cancelled async agent runs on in its thread: what it starts belongs to the run that has
        # ended, and is not a new run with a fresh cap. Those that ended before are forgotten all at once.
        self._ended: dict[Hashable, Run] = {}
        self._ended_before: dict[Hashable, Run] = {}
        self._lock = fork_safe_lock()

    @abstractmethod
    def _settle_use(self, paid: Reservation) -> None:
        """A tool that has a price has been used."""

    @abstractmethod
    def _left(self, run: Run, error: BaseException | None) -> None:
        """A run is about to end, by an error if there is one, and the calls that are open inside of it are left."""

    @abstractmethod
    def _forgotten(self, run: Run) -> None:
        """A run ended so long ago that the ends of calls inside are not waited for any more."""

    def _forked(self) -> None:
        # Runs stay: what the child does inside of one is a part of it. Calls belong to the process that it was forked from.
        for run in (*self._runs.values(), *self._ended.values(), *self._ended_before.values()):
            run.root.calls.clear()
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
        tool_call_id: str = "",
        found: Callable[[], Span | None] | None = None,
    ) -> None:
        """A run has begun below its parent; agents and tools become part of the path of every call inside.

        Args:
            run_id: The framework's.
            parent_id: The run around it.
            kind: What it is.
            name: The agent's or tool's; an agent may have none.
            dimensions: Those that the framework's metadata gives.
            arguments: What a tool is asked; only a hash of it is kept, to find loops.
            tool_call_id: The identity of a tool's call, which the model's answer bears, too; if it is known.
            found: Finds the span that another instrumentation draws for this run, if there is one.

        Raises:
            CapExceeded: If it is a tool with a price, and a cap does not admit one more use.
        """
        parent = self._find(parent_id)
        if kind == "chain" and parent is not None:
            self._runs.setdefault(run_id, parent)
            return
        if run_id in self._runs:
            return
        around = _around.get()
        path = parent.path if parent else around.path if around else ()
        # Middleware around a tool has put the tool into the path already.
        if kind != "chain" and name and (parent or path[-1:] != ((kind, name),)):
            path = (*path, (kind, name))
        above = parent or self._turn()
        run = Run(run_id, above, path, tool=kind == "tool")
        if kind != "chain":
            run.kind = kind
            where = self._whom(run, dimensions)
            if kind == "tool" and self._maestro.admission.quotes.sells(name):
                run.paid = self._pay(name, where, above, found, tool_call_id=tool_call_id)
            run.drawing = self._drawn(kind, name, where, above, found, tool_call_id=tool_call_id)
            run.span = (run.drawing and run.drawing.span) or run.span
            if kind == "tool":
                run.use = self._maestro.circles.begin(self._scope(parent), name, where, arguments)
        self._runs[run_id] = run

    def _pay(
        self,
        tool: str,
        where: Attribution,
        parent: Run | None,
        found: Callable[[], Span | None] | None,
        *,
        tool_call_id: str,
    ) -> Reservation:
        call = Call(provider="tool", model=tool, operation="tool", attribution=where, name=f"tool {tool}")
        try:
            return self._maestro.reserve(call)
        except CapExceeded as error:
            drawing = self._drawn("tool", tool, where, parent, found, tool_call_id=tool_call_id)
            not_sent(drawing, parent, error)
            raise

    def _drawn(
        self,
        kind: RunKind,
        name: str,
        where: Attribution,
        parent: Run | None,
        found: Callable[[], Span | None] | None,
        *,
        tool_call_id: str,
    ) -> Drawing | None:
        above = parent.span if parent else None
        return self._maestro.telemetry.start(
            _OPERATIONS[kind], name, where, parent=above, found=found, tool_call_id=tool_call_id
        )

    def leave(
        self,
        run_id: Hashable,
        error: BaseException | None = None,
        *,
        result: object = UNSEEN,
        failed: bool = False,
        ended_ns: int | None = None,
    ) -> None:
        """A run has ended. With the outermost one, calls inside whose end was not reported are presumed spent.

        One that goes on in a thread of its own corrects that when it ends.

        Args:
            run_id: The framework's.
            error: What ended it.
            result: What a tool answered, if that is seen; only a hash of it is kept, to find loops.
            failed: Whether a tool's answer reports an error.
            ended_ns: When, in nanoseconds since 1970, if it was earlier than now.
        """
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        self._ended[run_id] = run
        if len(self._ended) >= _MOST_ENDED:
            self._forget()
        if run.run_id != run_id:  # a chain inside of it
            return
        run.ended = True
        if run.paid is not None:
            self._settle_use(run.paid)
        if run.root is run:
            self._left(run, error)
        if run.drawing is not None:
            run.drawing.end(
                error=error, run_cost_nanos=run.cost_nanos, failed_inside=failed, ended_ns=ended_ns
            )
            run.span = run.drawing.fade() or run.span
            if run.parent is not None:
                run.parent.latest_ns = time.time_ns()
        if run.use is not None:
            self._maestro.circles.end(run.use, result, failed=failed, error=error)
            run.use = None
        if run.root is run:
            self._maestro.circles.forget(run.instance)

    def _forget(self) -> None:
        with self._lock:
            if len(self._ended) < _MOST_ENDED:  # another thread was here
                return
            forgotten, self._ended_before, self._ended = self._ended_before, self._ended, {}
        for run_id, run in forgotten.items():
            if run.root is run and run.run_id == run_id:
                self._forgotten(run)

    def kind(self, run_id: Hashable | None) -> RunKind | None:
        """Return what the innermost run is that `run_id` is a part of, or None if it is not known."""
        run = self._find(run_id)
        return run.kind if run is not None else None

    def agent(self, run_id: Hashable | None) -> str | None:
        """Return the innermost agent around a run, without looking past the innermost tool."""
        run = self._find(run_id)
        kind, name = run.path[-1] if run and run.path else ("", "")
        return name if kind == "agent" else None

    def attribution(
        self, run_id: Hashable | None, dimensions: Mapping[str, str] | None = None
    ) -> Attribution:
        """Return whom a call below a run is for: metadata dimensions, then the surrounding `attribution(...)`."""
        return self._whom(self._find(run_id), dimensions)

    def _whom(self, run: Run | None, dimensions: Mapping[str, str] | None) -> Attribution:
        around = _around.get()
        own = {"run": run.root.name} if run else {}
        if around is not None:
            own = {**around.dimensions, **({} if "run" in around.dimensions else own)}
        path = run.path if run else around.path if around else ()
        return Attribution({**own, **(dimensions or {}), **current()}, path)

    def whom(
        self, run_id: Hashable, parent_id: Hashable | None, dimensions: Mapping[str, str] | None = None
    ) -> Attribution:
        """Return whom a call with this run id is for; one of which no run is known is a run of its own.

        Args:
            run_id: The call's.
            parent_id: The run around it.
            dimensions: Those that the framework's metadata gives.
        """
        parent = self._find(parent_id)
        if parent is None and _around.get() is None:
            dimensions = {"run": str(run_id), **(dimensions or {})}
        return self._whom(parent, dimensions)

    def name(self, run_id: Hashable | None, name: str) -> None:
        """Call the outermost run around `run_id` so, in caps and reports; a resumed run keeps its name."""
        found = self._find(run_id)
        if found is None or found.root.name == name:
            return
        root = found.root
        root.name = name
        if root.drawing is not None:
            root.drawing.belongs(self._whom(root, None))

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

    def _scope(self, parent: Run | None) -> Scope:
        """Return which agent, in which run of it, calls a model or a tool below `parent`."""
        if parent is not None:
            return parent.instance, parent.path
        around = _around.get()
        path = around.path if around else ()
        # Middleware around a tool has put the tool into the path already.
        return _instance.get(), path[:-1] if path and path[-1][0] == "tool" else path

    def _find(self, run_id: Hashable | None) -> Run | None:
        if run_id is None:
            return None
        return self._runs.get(run_id) or self._ended.get(run_id) or self._ended_before.get(run_id)

    def _turn(self) -> Run | None:
        """Return the agent's run that the door around the caller knows of."""
        instance = _instance.get()
        return self._find(instance) if instance is not None else None

    def suspect(self, kind: str, tool: str, where: Attribution) -> None:
        """Show on an agent's span that something is wrong with it, as a `"loop"` of a tool (or of its model)."""
        for run in upwards(self._latest(where)):
            if run.drawing is not None and run.kind == "agent":
                run.drawing.suspected(kind, tool)
                return

    def _latest(self, where: Attribution) -> Run | None:
        """Return the latest run of an agent or tool that something is for, if nobody knows which it is."""
        name, path = where.dimensions.get("run"), where.path
        for run_id, run in reversed(tuple(self._runs.items())):
            mine = run.drawing is not None and run.root.name == name and run.run_id == run_id
            if mine and run.path == path[: len(run.path)]:
                return run
        return None


def around_here() -> Attribution | None:
    """Return whom calls are for where no run tree reaches, as a door around the caller says."""
    return _around.get()


def upwards(run: Run | None) -> Iterator[Run]:
    """Yield a run and every run around it, innermost first."""
    while run is not None:
        yield run
        run = run.parent


def not_sent(drawing: Drawing | None, parent: Run | None, error: BaseException) -> None:
    """Show a refusal on the call's own span, or, where others draw it and never will, on the run around it."""
    if drawing is not None and drawing.span is None:
        drawing = next((run.drawing for run in upwards(parent) if run.drawing is not None), None)
        if drawing is not None and isinstance(error, CapExceeded):
            drawing.refused(error)
        return
    if drawing is not None:
        if isinstance(error, CapExceeded):
            drawing.refused(error)
        drawing.end(error=error)
