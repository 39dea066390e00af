"""Turns of agents that a door tells of, and that no handler follows: how they begin, pause, go on and end."""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from .runtree import RunTree, around_here
from .types import Attribution

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from .maestro import Maestro

__all__ = ["Turns"]


class Turns(RunTree):
    """The run tree, with those of its runs that only doors know."""

    def __init__(self, maestro: Maestro) -> None:
        super().__init__(maestro)
        self._lives: dict[str, weakref.ref[object]] = {}
        self._gone: deque[str] = deque()  # have ended and did not say so
        maestro.telemetry.finishes(self)

    def _forked(self) -> None:
        self._lives = {}  # to end them is the parent's affair
        super()._forked()

    def begin(
        self,
        turn: str,
        parent_id: Hashable | None,
        *,
        agent: str,
        run: str,
        dimensions: Mapping[str, str],
        life: object,
    ) -> None:
        """A door is told that its agent begins; where no handler follows it, that is a run. `leave` it when it ends.

        Calls inside `around(..., turn)` whose own parents are not known stand below it.

        Args:
            turn: What the door calls it.
            parent_id: The framework's run that the door is told in.
            agent: Its name, or nothing.
            run: The name of the outermost run.
            dimensions: Those that the framework's metadata gives.
            life: Something that lives as long as the agent runs, for ends that nobody tells the door of.
        """
        self.sweep()
        around = around_here()
        inside = Attribution(around.dimensions, (*around.path, ("agent", agent))) if around else None
        known = self._find(parent_id) or (self._latest(inside) if inside else None)
        if known is not None:
            self._runs[turn] = known
        else:
            self.enter(turn, None, kind="agent", name=agent, dimensions=dimensions)
            self.name(turn, run)
        self._lives[turn] = weakref.ref(life)
        # It may be collected anywhere, also inside a lock that an end would take.
        weakref.finalize(life, self._gone.append, turn).atexit = False

    def resumes(self, turn: str, life: object) -> bool:
        """Whether a door that goes on with a turn has to `begin` it again, because it was paused, here or elsewhere.

        What goes on while the same `life` lasts resumes nothing, even if the turn has ended: a tool beside one that failed.
        """
        known = self._lives.get(turn)
        if known is None:
            return turn not in self._runs
        if known() is life:
            return False
        self._end(turn)
        return True

    def sweep(self) -> None:
        """End the turns whose end nobody told."""
        with suppress(IndexError):  # other threads are at it, too
            while self._gone:
                turn = self._gone.popleft()
                known = self._lives.get(turn)
                if known is not None and known() is None:  # else it was resumed meanwhile
                    del self._lives[turn]
                    self._end(turn)

    def finish(self) -> None:
        """Nothing more is shown after this: end all turns as far as they have come."""
        for turn in tuple(self._lives):
            self._end(turn)

    def _end(self, turn: str) -> None:
        run = self._runs.get(turn)
        if run is not None:
            self.leave(turn, ended_ns=run.latest_ns or None)
