"""The tree of a framework's runs: agents and tools around every call, and whom the calls inside are for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .attribution import current
from .circles import UNSEEN
from .errors import CapExceeded
from .types import Attribution, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from opentelemetry.trace import Span

    from .circles import Use
    from .loops import Scope
    from .maestro import Maestro
    from .telemetry import Drawing, Operation
    from .types import Reservation, Step

__all__ = ["Run", "RunKind", "RunTree", "not_sent", "upwards"]

_MOST_ENDED = 2_000

RunKind = Literal["chain", "agent", "tool"]
_OPERATIONS: dict[RunKind, Operation] = {"agent": "invoke_agent", "tool": "execute_tool"}


# Whom calls are for where no run tree reaches: set by middleware around its model and tool calls.
_around: ContextVar[Attribution | None] = ContextVar("maestro_around", default=None)
# Which run of an agent it is, likewise.
_instance: ContextVar[Hashable] = ContextVar("maestro_instance", default=None)


@dataclass(slots=True)
class Run:
    """A run that is in flight, or has ended lately."""

    root_id: Hashable
    path: tuple[Step, ...]
    span: Span | None  # the nearest that we drew
    parent: Run | None = None
    drawing: Drawing | None = None
    cost_nanos: int = 0  # of all calls inside
    paid: Reservation | None = None  # for the use of a tool that has a price
    calls: set[Hashable] = field(default_factory=set)  # open calls, kept at the root only
    instance: Hashable = None  # the innermost tool's run, or the outermost run
    use: Use | None = None  # of a tool, for whoever looks for loops


class RunTree(ABC):
    """The runs of one Maestro. Safe from any thread; every method is idempotent on `run_id`."""

    def __init__(self, maestro: Maestro) -> None:
        self._maestro = maestro
        self._runs: dict[Hashable, Run] = {}
        # A sync tool of a cancelled async agent runs on in its thread: what it starts belongs to the run that has
        # ended, and is not a new run with a fresh cap.
        self._ended: dict[Hashable, Run] = {}
        self._names: dict[Hashable, str] = {}

    @abstractmethod
    def _settle_use(self, paid: Reservation) -> None:
        """A tool that has a price has been used."""

    @abstractmethod
    def _left(self, run: Run) -> None:
        """A run has ended, and the calls that are open inside of it are left."""

    @abstractmethod
    def _forgotten(self, run: Run) -> None:
        """A run ended so long ago that the ends of calls inside are not waited for any more."""

    def _forked(self) -> None:
        # Runs stay: what the child does inside of one is a part of it. Calls belong to the process that it was forked from.
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
        run = Run(parent.root_id if parent else run_id, path, parent.span if parent else None, parent)
        if kind != "chain":
            # Middleware around a tool has put the tool into the path already.
            run.path = path if not parent and path[-1:] == ((kind, name),) else (*path, (kind, name))
            where = self.attribution(run, dimensions)
            if kind == "tool" and self._maestro.admission.quotes.sells(name):
                paid = Call(
                    provider="tool", model=name, operation="tool", attribution=where, name=f"tool {name}"
                )
                try:
                    run.paid = self._maestro.reserve(paid)
                except CapExceeded as error:
                    not_sent(self._drawn(kind, name, where, run.span, found), parent, error)
                    raise
            run.drawing = self._drawn(kind, name, where, run.span, found)
            run.span = (run.drawing and run.drawing.span) or run.span
            if kind == "tool":
                run.use = self._maestro.circles.begin(owner, name, where, arguments)
        run.instance = run_id if kind == "tool" or not parent else parent.instance
        self._runs[run_id] = run

    def _drawn(
        self,
        kind: RunKind,
        name: str,
        where: Attribution,
        above: Span | None,
        found: Callable[[], Span | None] | None,
    ) -> Drawing | None:
        return self._maestro.telemetry.start(_OPERATIONS[kind], name, where, parent=above, found=found)

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
            if forgotten is not None:
                self._forgotten(forgotten)
        if run.paid is not None:
            self._settle_use(run.paid)
        if run.drawing is not None:
            run.drawing.end(error=error, run_cost_nanos=run.cost_nanos)
        if run.use is not None:
            self._maestro.circles.end(run.use, result, failed=failed, error=error)
        if run.root_id == run_id:
            self._maestro.circles.forget(run_id)
        self._left(run)

    def agent(self, run_id: Hashable | None) -> str | None:
        """Return the innermost agent around a run, without looking past the innermost tool."""
        run = self._find(run_id)
        kind, name = run.path[-1] if run and run.path else ("", "")
        return name if kind == "agent" else None

    def attribution(
        self, run: Run | Hashable | None, dimensions: Mapping[str, str] | None = None
    ) -> Attribution:
        """Return whom a call below `run` is for: metadata dimensions, then the surrounding `attribution(...)`."""
        found = run if isinstance(run, Run) else self._find(run)
        around = _around.get()
        own = {"run": self._names.get(found.root_id, str(found.root_id))} if found else {}
        if around is not None:
            own = {**around.dimensions, **({} if "run" in around.dimensions else own)}
        path = found.path if found else around.path if around else ()
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
        return self.attribution(parent, dimensions)

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

    def _scope(self, parent: Run | None) -> Scope:
        """Return which agent, in which run of it, calls a model or a tool below `parent`."""
        if parent is not None:
            return parent.instance, parent.path
        around = _around.get()
        path = around.path if around else ()
        # Middleware around a tool has put the tool into the path already.
        return _instance.get(), path[:-1] if path and path[-1][0] == "tool" else path

    def _find(self, run_id: Hashable | None) -> Run | None:
        return self._runs.get(run_id) or self._ended.get(run_id)

    def suspect(self, kind: str, tool: str, where: Attribution) -> None:
        """Show on an agent's span that something is wrong with it, as a `"loop"` of a tool (or of its model)."""
        for run in upwards(self._latest(where)):
            if run.drawing is not None and run.path and run.path[-1][0] == "agent":
                run.drawing.suspected(kind, tool)
                return

    def _latest(self, where: Attribution) -> Run | None:
        """Return the latest run of an agent or tool that something is for, if nobody knows which it is."""
        name, path = where.dimensions.get("run"), where.path
        for run in reversed(tuple(self._runs.values())):
            mine = run.drawing is not None and self._names.get(run.root_id, str(run.root_id)) == name
            if mine and run.path == path[: len(run.path)]:
                return run
        return None


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
