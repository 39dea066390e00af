"""One schedule: some processes, each with a few calls, on one store; and everything that can go wrong."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from maestro_core import Cap, CapExceeded, Maestro, Usage, admission, waiting
from maestro_core.doors import Doors
from maestro_core.errors import LedgerUnavailable, ReservationClosed
from maestro_core.ledger.memory import MemoryLedger
from maestro_core.plugins import load as _load
from maestro_core.quote import Quotes
from maestro_core.settings import Settings
from maestro_core.spool import Spool
from maestro_core.types import Attribution, Call, Reservation, Settlement
from maestro_core.waiting import Place, lineage

from .checks import Bill, Violation, Watched
from .scheduler import Scheduler, Task
from .wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["World", "run"]

# gpt-4o-mini, nano-dollars per token. A call of 1,000 tokens may cost some 620,000.
INPUT_NANOS, OUTPUT_NANOS = 150, 600
WAIT_S = 2.5

# How long a waiter may sleep although it could go on: a poll, or the time after which it tries anyway. Within a process
# it is woken, unless it is time that sets money free.
_SLOWEST_US = 600_000
_HOUR_US = 3_600_000_000

_SHAPES = (
    (("1", None, None),),
    (("1", None, "hour"),),
    (("1", None, None), ("0.6", "team", None)),
    (("1", None, "hour"), ("0.7", "run", None)),
    (("0.6", "team", "hour"), ("0.5", "run", None), ("1", None, None)),
)
_SIZES = (700, 1_000, 1_400, 2_500)  # of the largest cap, in micro-dollars
_bounds: dict[tuple[int, int | None], Any] = {}


@cache
def settings_of(shape: int, size: int) -> Settings:
    """Return settings with caps; made once, because reading the environment takes longer than a schedule."""
    caps = [
        Cap(f"{float(share) * _SIZES[size] / 1e6:.6f}", per=per, every=every)
        for share, per, every in _SHAPES[shape]
    ]
    return Settings(ledger="memory:", caps=caps, wait_s=WAIT_S, min_output_tokens=50)


class _NoPlugins:
    """A plugin manager without plugins, which asks nobody: asking takes a tenth of a schedule."""

    def __getattr__(self, _name: str) -> _NoPlugins:
        return self

    def __call__(self, **_call: Any) -> tuple[()]:
        return ()

    @staticmethod
    def get_hookimpls() -> tuple[()]:
        return ()


class QuickQuotes(Quotes):
    """The real bounds, each worked out once, and costs by hand: pricing has tests of its own."""

    def bound(self, call: Call) -> Any:
        name = len(call.input), call.max_output_tokens
        if name not in _bounds:
            _bounds[name] = super().bound(call)
        return _bounds[name]

    def settlement(self, reservation: Reservation, usage: Usage | None, detail: Any) -> Settlement:
        if usage is None:
            nanos = reservation.held_nanos
            return Settlement(cost_nanos=nanos, estimated_nanos=nanos)
        return Settlement(cost_nanos=cost_of(usage))


_NO_PLUGINS = _NoPlugins()
_QUOTES = QuickQuotes(_load())


def cost_of(usage: Usage) -> int:
    """Return what the provider charges."""
    return INPUT_NANOS * usage.input_tokens + OUTPUT_NANOS * usage.output_tokens


class Process(Maestro):
    """One process: the real core, with a line, latches, grants and outputs of its own, on a wire to the store."""

    def __init__(self, name: str, settings: Settings, wire: Wire, scheduler: Scheduler) -> None:
        self.name = name
        self.settings = settings
        self.plugins = _NO_PLUGINS
        self.telemetry = SimpleNamespace(metrics=SimpleNamespace(settled=lambda record: None))
        self.ledger = wire
        self.stopped_until_us = 0
        self._told = {}
        self.doors = Doors(self)
        self.doors.now_s = scheduler.monotonic_s
        self.doors._chance = scheduler.chance
        self._spool = Spool(wire, 0)
        self.admission = admission.Admission(settings, _NO_PLUGINS, wire, self._spool)
        assert self.admission.shared is wire
        self.admission.quotes = _QUOTES
        self.admission.line = waiting.Line(scheduler.monotonic_s)

    @property
    def alive(self) -> bool:
        return self.ledger.alive


@dataclass(frozen=True, slots=True)
class Plan:
    """What chance has in store for a schedule."""

    alone: bool
    network: bool
    deaths: int
    stops: int
    restarts: bool
    nested: float
    overruns: float


def _plan(chance: Any) -> Plan:
    alone = chance.random() < 0.15
    return Plan(
        alone=alone,
        network=not alone and chance.random() < 0.3,
        deaths=0 if alone else chance.choice((0, 0, 1, 1, 2)),
        stops=chance.choice((0, 0, 0, 1)),
        restarts=chance.random() < 0.5,
        nested=chance.choice((0, 0, 0.2)),
        overruns=chance.choice((0, 0, 0, 0.1)),
    )


class World:
    """Everything of one schedule; `run` plays it to its end.

    Args:
        seed: Decides everything.
        open_store: Opens the ledger that all processes share; it is given a clock.
        trace: Where to write what happens; None to be quick.
    """

    def __init__(
        self,
        seed: int,
        open_store: Callable[[Any], Any] = MemoryLedger,
        trace: list[str] | None = None,
    ) -> None:
        self.scheduler = Scheduler(seed, trace)
        self.chance = self.scheduler.chance
        self.plan = _plan(self.chance)
        self.settings = settings_of(self.chance.randrange(len(_SHAPES)), self.chance.randrange(len(_SIZES)))
        self.store = Watched(
            open_store(SimpleNamespace(now_us=lambda: self.scheduler.now_us)), self.scheduler
        )
        zone = self.settings.time_zone
        self.bill = Bill({cap.meter(zone): cap.limit_nanos for cap in self.settings.caps})
        self.processes: list[Process] = []
        self.late: list[Callable[[], None]] = []
        self.fates: dict[str, str] = {}
        self._dead: list[Process] = []
        self._deaths, self._stops = self.plan.deaths, self.plan.stops
        self._could_go: dict[Task, int] = {}
        self._looked = -1, 0
        self._calls = 0
        if self.plan.alone:
            self.start(self.chance.randint(3, 6))
        else:
            for _ in range(self.chance.choice((2, 2, 2, 3, 4))):
                self.start(self.chance.choice((1, 1, 2, 3)))

    # -- what processes do --------------------------------------------------------------------------------------------

    def start(self, calls: int) -> None:
        """Start a process that makes so many calls at once."""
        wire = Wire(self.scheduler, self.store, losses=0.03 if self.plan.network else 0, late=self.late)
        process = Process(f"p{len(self.processes) + 1}", self.settings, wire, self.scheduler)
        self.processes.append(process)
        for _ in range(calls):
            self.spawn(process)

    def spawn(self, process: Process) -> None:
        self._calls += 1
        key = f"c{self._calls}"
        self.scheduler.spawn(process, f"{process.name}/{key}", lambda: self.call(process, key, 0))

    def call(self, process: Process, key: str, depth: int) -> None:
        """One call, from the door to its end."""
        if not depth and self.chance.random() < 0.3:
            self.scheduler.sleep(self.chance.uniform(0, 6))
        call = self._call(key)
        try:
            reservation = self._reserve(process, call, depth)
        except (CapExceeded, LedgerUnavailable) as error:
            self.fates[key] = getattr(error, "reason", "unavailable")
            self.scheduler.say(str(error))
            return
        self.fates[key] = "admitted"
        self._serve(process, reservation, depth)

    def _call(self, key: str) -> Call:
        chance = self.chance
        where = {"team": chance.choice("ab"), "run": chance.choice(("r1", "r2", "r3"))}
        return Call(
            provider="openai",
            model="gpt-4o-mini",
            input="x" * chance.choice((0, 100, 400)),
            max_output_tokens=chance.choice((200, 500, 1_000)),
            attribution=Attribution(where),
            key=key,
        )

    def _reserve(self, process: Process, call: Call, depth: int) -> Reservation:
        if self.chance.random() < 0.2:
            return process.reserve(call)  # a bare handler: it cannot wait
        scheduler, task = self.scheduler, self.scheduler.current
        request = process.admission.prepare(call, fits=self.chance.random() < 0.7)
        steps = process.doors._steps(request, task.wake, may_wait=True)
        began_us = scheduler.now_us
        task.facts["nested"] = depth > 0
        pauses = iter(
            steps
        )  # kept, or an error would close it from within the interpreter, where nobody may switch
        try:
            for pause_s in pauses:
                task.facts["waits"] = process
                scheduler.sleep(pause_s)
                task.facts.pop("waits")
                if self.chance.random() < 0.01:
                    raise LedgerUnavailable("simulated: the caller was cancelled while it waited")
        finally:
            task.facts.pop("waits", None)
            steps.close()
        try:
            return steps.reservation
        except CapExceeded as error:
            waited_s = (scheduler.now_us - began_us) / 1e6
            if error.reason == "held" and waited_s < WAIT_S and not depth:
                raise Violation(f"{call.key} was refused as held after {waited_s} s") from error
            raise

    def _serve(self, process: Process, reservation: Reservation, depth: int) -> None:
        """The provider answers, and is paid, whatever becomes of the process."""
        chance, scheduler, key = self.chance, self.scheduler, reservation.key
        inside = lineage.set((*lineage.get(), key))
        scheduler.switch()
        if not process.alive:
            return
        if chance.random() < 0.1:
            scheduler.say(f"{key} is not billed")
            self._close(lambda: process.release(reservation, "HTTP 429"))
            return
        usage = self._answer(reservation)
        scheduler.sleep(chance.uniform(0.05, 1.5))
        if depth < 2 and chance.random() < self.plan.nested:
            self.call(process, f"{key}.{depth + 1}", depth + 1)
        lineage.reset(inside)
        fate = chance.random()
        if fate < 0.05:
            scheduler.say(f"{key} was cancelled by its caller")
            self._close(lambda: process.presume([key]))
        else:
            self._close(lambda: process.settle(reservation, None if fate < 0.1 else usage))

    def _answer(self, reservation: Reservation) -> Usage:
        chance, call = self.chance, reservation.call
        most = reservation.fitted_output_tokens or call.max_output_tokens or 0
        output = most if chance.random() < 0.2 else chance.randint(0, most)
        if chance.random() < self.plan.overruns:
            output = most * 2
        usage = Usage(input_tokens=chance.randint(1, len(call.input) + 1), output_tokens=output)
        nanos = cost_of(usage)
        self.scheduler.say(f"{call.key} is billed {nanos}")
        self.bill.add(call.key, *self.store.held[call.key], nanos)
        return usage

    def _close(self, verb: Callable[[], object]) -> None:
        # A network may lose it; the spool tries again, and what is never closed is presumed spent.
        with suppress(LedgerUnavailable, ReservationClosed):
            verb()

    # -- what happens to them -----------------------------------------------------------------------------------------

    def run(self) -> World:
        """Play the schedule to its end, and look at the books.

        Raises:
            Violation: If a promise was broken on the way.
        """
        with _places(self.scheduler):
            while self.scheduler.tasks:
                self._happen()
                ready = self.scheduler.ready(self._runs)
                if ready:
                    self.scheduler.step(self.chance.choice(ready))
                else:
                    self._pass_time()
            self._audit()
        return self

    def _runs(self, task: Task) -> bool:
        return task.owner.stopped_until_us <= self.scheduler.now_us

    def _happen(self) -> None:
        what = self.chance.random()
        if what < 0.01 and self._deaths:
            self._deaths -= 1
            self._kill()
        elif what < 0.02 and self._stops:
            self._stops -= 1
            process = self.chance.choice(self.processes)
            process.stopped_until_us = self.scheduler.now_us + self.chance.randint(100_000, 3_000_000)
            self.scheduler.say(f"{process.name} is stopped until it is let go on")
        elif what < 0.03 and self._dead:
            self._notice()
        elif self.late and what < 0.1:
            self.late.pop(self.chance.randrange(len(self.late)))()
        elif what > 0.9:
            self.scheduler.now_us += self.chance.randint(0, 20_000)

    def _kill(self) -> None:
        alive = [process for process in self.processes if process.alive]
        if not alive:
            return
        victim = self.chance.choice(alive)
        victim.ledger.alive = False
        self.scheduler.say(f"{victim.name} is killed")
        self.scheduler.kill([task for task in self.scheduler.tasks if task.owner is victim])
        self._dead.append(victim)
        if self.plan.restarts:
            self.start(self.chance.choice((1, 2)))

    def _notice(self) -> None:
        """A process that lives sees that another is dead, and presumes its calls spent."""
        alive = [process for process in self.processes if process.alive]
        if not alive:
            return
        dead = self._dead.pop()
        keys = sorted(key for key in self.store.open if self._owner(key) is dead)
        process = self.chance.choice(alive)
        self.scheduler.spawn(
            process, f"{process.name}/look", lambda: self._close(lambda: process.presume(keys))
        )

    def _owner(self, key: str) -> Process | None:
        made = self.store.held[key][0].ticket
        lines = {process.admission.line.process: process for process in self.processes}
        return lines.get(made.process) if made else None

    def _pass_time(self) -> None:
        """Nobody can go on before time passes. Whoever could have gone on all the same was overlooked."""
        scheduler = self.scheduler
        next_us = scheduler.next_us(self._runs)
        stopped = [p.stopped_until_us for p in self.processes if p.stopped_until_us > scheduler.now_us]
        self._look_for_sleepers()
        times = [at for at in (next_us, *stopped) if at is not None and at > scheduler.now_us]
        scheduler.now_us = min(times) if times else scheduler.now_us + 1_000

    def _look_for_sleepers(self) -> None:
        now_us = self.scheduler.now_us
        version, at_us = self._looked
        if version == self.store.version and not self._could_go and now_us - at_us < _SLOWEST_US // 2:
            return
        self._looked = self.store.version, now_us
        for task in self.scheduler.tasks:
            if not self._could_go_on(task):
                self._could_go.pop(task, None)
                continue
            since_us = self._could_go.setdefault(task, now_us)
            if now_us - since_us >= self._patience_us():
                raise Violation(f"{task.name} waits, and could have gone on since {since_us}")

    def _patience_us(self) -> int:
        new_window = self.scheduler.now_us % _HOUR_US < _SLOWEST_US
        alone = self.plan.alone and isinstance(self.store.store, MemoryLedger)  # others may come to a file
        return 0 if alone and not new_window else _SLOWEST_US

    def _could_go_on(self, task: Task) -> bool:
        process, hold = task.facts.get("waits"), task.facts.get("hold")
        if process is None or hold is None or not self._runs(task):
            return False
        if not self.store.suffices(hold) and not self.store.hopeless(hold):
            return False
        names = task.facts.setdefault(
            "names", frozenset(place.key[:2] for place, _ in self.store.counters(hold))
        )
        for waiter in process.admission.line._waiters:
            if waiter.wake == task.wake:
                return True
            if waiter.at in names and not task.facts["nested"]:
                return False
        return True

    # -- the end ------------------------------------------------------------------------------------------------------

    def _audit(self) -> None:
        while self.late:
            self.late.pop()()
        self.store.presume(keys=self.store.open)
        lines = self.store.check()
        if lines:
            raise Violation("the books do not balance: " + "; ".join(lines))
        left = [hold.key for hold in self.store.holds() if hold.state == "held"]
        if left:
            raise Violation(f"still held: {left}")
        booked: dict[str, int] = {}
        estimated: dict[str, int] = {}
        for record in self.store.records():
            booked[record.key] = booked.get(record.key, 0) + record.cost_nanos
            estimated[record.key] = estimated.get(record.key, 0) + record.estimated_nanos
        for key, nanos in self.bill.of.items():
            known = booked.get(key, 0)
            held = self.store.held[key][1].amount_nanos
            if known < min(nanos, held) or (not estimated.get(key) and known != nanos):
                raise Violation(f"{key} was billed {nanos} and booked at {known}")
        for process in self.processes:
            if process.alive and (process.admission.line._waiters or process.admission.line._open):
                self._check_line(process)

    def _check_line(self, process: Process) -> None:
        line = process.admission.line
        if line._waiters:
            raise Violation(f"{process.name} still has waiters in line")
        leaked = set(line._open) - {hold.key for hold in self.store.holds()}
        if leaked and not self.plan.network:
            raise Violation(f"{process.name} believes that {leaked} are still open")


@contextmanager
def _places(scheduler: Scheduler) -> Iterator[None]:
    """Each task is a place of its own."""
    real = waiting.here
    waiting.here = admission.here = lambda: Place(1, scheduler.current.number)
    try:
        yield
    finally:
        waiting.here = admission.here = real


def run(seed: int, open_store: Callable[[Any], Any] = MemoryLedger, trace: list[str] | None = None) -> World:
    """Play one schedule to its end.

    Raises:
        Violation: If a promise was broken.
    """
    return World(seed, open_store, trace).run()
