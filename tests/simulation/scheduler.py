"""Runs tasks one at a time and switches between them where chance says so; time passes only when it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Killed", "Scheduler", "Task"]

_START_US = 1_767_229_195_000_000  # 2026-01-01 00:59:55 UTC, five seconds before an hour's end
_MOST_STEPS = 20_000


class Killed(BaseException):  # no error: SIGKILL, which no code sees
    """Unwinds the tasks of a process that is dead; nothing that they still do reaches anybody."""


@dataclass(eq=False)
class Task:
    """One thread or asyncio task of one simulated process."""

    name: str
    owner: object
    run: Callable[[], None]
    number: int
    until_us: int | None = None  # asleep until then, or until it is woken
    woken: bool = False
    facts: dict = field(default_factory=dict)  # what the checks want to know of it
    greenlet: greenlet = field(init=False, repr=False)

    def wake(self) -> None:
        self.woken = True


class Scheduler:
    """Tasks, a clock and a source of chance.

    Args:
        seed: Decides everything.
        trace: Where to write what happens, one line each; None to be quick.
    """

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.seed = seed
        self.chance = Random(seed)
        self.trace = trace
        self.now_us = _START_US
        self.tasks: list[Task] = []
        self.errors: list[BaseException] = []
        self.steps = 0
        self._spawned = 0
        # Some schedules switch at every chance, others let a task run on for a while: each finds what the other hides.
        self._stays = self.chance.choice((0.0, 0.3, 0.7, 0.9))
        self._main = getcurrent()
        self._current: Task | None = None

    @property
    def current(self) -> Task:
        """The task that runs."""
        assert self._current
        return self._current

    def monotonic_s(self) -> float:
        """The clock that nobody sets, in seconds."""
        return self.now_us / 1_000_000

    def say(self, what: str) -> None:
        """Write a line of the trace."""
        if self.trace is not None:
            who = self._current.name if self._current else "world"
            self.trace.append(f"{(self.now_us - _START_US) / 1e6:9.4f} {who:<12} {what}")

    def spawn(self, owner: object, name: str, run: Callable[[], None]) -> Task:
        """Add a task; it begins when the scheduler gets to it."""
        self._spawned += 1
        task = Task(name, owner, run, self._spawned)
        task.greenlet = greenlet(self._body(task), parent=self._main)
        self.tasks.append(task)
        return task

    def switch(self) -> None:
        """Let others go on before the current task does."""
        if self._current is not None and self.chance.random() >= self._stays:
            self._main.switch()

    def sleep(self, seconds: float) -> None:
        """Put the current task to sleep, until it is woken or the time is over."""
        task = self.current
        if not task.woken:
            task.until_us = self.now_us + max(1, int(seconds * 1_000_000))
            self._main.switch()
        task.until_us, task.woken = None, False

    def kill(self, doomed: list[Task]) -> None:
        """End tasks at once, wherever they are."""
        for task in doomed:
            self.tasks.remove(task)
            self._current = task
            if task.greenlet:  # begun, and not ended
                task.greenlet.throw(Killed)
            self._current = None

    def ready(self, runs: Callable[[Task], bool]) -> list[Task]:
        """Return the tasks that can go on now."""
        now_us = self.now_us
        return [
            task
            for task in self.tasks
            if (task.until_us is None or task.woken or task.until_us <= now_us) and runs(task)
        ]

    def step(self, task: Task) -> None:
        """Let one task run to its next switch."""
        self.steps += 1
        assert self.steps < _MOST_STEPS, "the schedule does not end"
        self._current = task
        task.greenlet.switch()
        self._current = None
        if task.greenlet.dead:
            self.tasks.remove(task)
        if self.errors:
            raise self.errors[0]

    def next_us(self, runs: Callable[[Task], bool]) -> int | None:
        """Return when the time of the first sleeper is over that can go on then."""
        times = [task.until_us for task in self.tasks if task.until_us is not None and runs(task)]
        return min(times, default=None)

    def _body(self, task: Task) -> Callable[[], None]:
        def body() -> None:
            try:
                task.run()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 - it is raised in the scheduler, with its seed
                self.errors.append(error)

        return body
