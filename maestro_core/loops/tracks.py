"""One agent's way through its tools, turn by turn, and whether it leads in circles.

A turn is what happens between two calls of the agent's model; what a model asks for at once counts once. A turn is
*stale* if nothing new came of it: every result was seen within the last turns, or every tool failed. Five turns that
circle are a loop. Results that differ only in moments, durations or ids are the same; so are results that differ only in
numbers, if the arguments are the same, too. A tool that only confirms ("saved") makes progress with new arguments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from .fingerprints import Outcome

__all__ = ["Loop", "Shape", "Track"]

Shape = Literal["repeat", "cycle", "same_result", "errors", "no_progress"]

TURNS = 5
# The same call with words that are new each time: slower to judge, since a tool may be read on and on.
_TURNS_OF_SAME_CALL = 10
# What was answered longer ago counts as new: agents whose context was cut read again what they have forgotten.
_WINDOW = 12
_PERIODS = (2, 3)

_Call = tuple[str, int]  # tool, arguments


@dataclass(frozen=True, slots=True)
class Loop:
    """An agent goes round in circles: in which way, with which tool (none, if its model talks on), for how long."""

    shape: Shape
    tool: str
    turns: int
    since_us: int
    model: str = ""


@dataclass(slots=True)
class _Turn:
    began_us: int = 0
    calls: set[_Call] = field(default_factory=set)
    results: set[_Call] = field(default_factory=set)  # tool, what it answered
    answers: set[tuple[_Call, int]] = field(default_factory=set)
    new: bool = False
    failed: bool = True
    varied: bool = True  # whether every call had arguments
    told: bool = False


class Track:
    """What one agent does in one run of it. Constant in size; not thread-safe."""

    __slots__ = ("_open", "_past", "_said", "_same_call", "_stale", "_turn", "model")

    def __init__(self, now_us: int) -> None:
        self._past: deque[_Turn] = deque(maxlen=_WINDOW)
        self.model = ""  # that the agent last called
        self._turn = _Turn(now_us)
        self._open = 0
        self._stale = 0  # turns in a row, up to the last one, in which the first may have been new
        self._same_call = 0
        self._said: tuple[int, int] | None = None

    def ask(self, context: int, now_us: int) -> Loop | None:
        """The agent's model is asked again, with so many messages; the turn before is over.

        A model that repeats its answer while they grow, and uses no tool in between, circles as well.
        """
        said, self._said = self._said, None
        found = None
        if said and context > said[0] and not self._turn.calls and not self._open:
            found = self._add(("", 0), Outcome(said[1], 0), plain=True)
        self._close(now_us)
        return found

    def say(self, context: int, answer: int) -> None:
        """The model has answered to so many messages; `answer` is the fingerprint of what it said."""
        self._said = context, answer

    def begin(self) -> None:
        """A tool begins."""
        self._open += 1

    def end(self, tool: str, arguments: int, result: Outcome, *, plain: bool = False) -> Loop | None:
        """A tool has ended; return the loop that this closes.

        Args:
            tool: Its name.
            arguments: Their fingerprint.
            result: What came of it.
            plain: Whether there were no arguments: such a tool may well answer with the next number each time.
        """
        self._open -= 1
        return self._add((tool, arguments), result, plain=plain)

    def skip(self) -> None:
        """A tool has ended that may be asked again and again: it is progress."""
        self._open -= 1
        self._turn.new, self._turn.failed = True, False

    def _add(self, call: _Call, result: Outcome, *, plain: bool) -> Loop | None:
        turn, past = self._turn, self._past
        answer, said = (call, result.rough), (call[0], result.steady)
        if not result.failed:
            turn.failed = False
            if result.receipt:
                turn.new = turn.new or not any(call in before.calls for before in past)
            elif not turn.new:
                turn.new = not any(said in b.results or answer in b.answers for b in past)
        turn.calls.add(call)
        turn.results.add(said)
        if plain:
            turn.varied = False
        else:
            turn.answers.add(answer)
        # While other tools of this turn are under way, they may still bring something new.
        return None if self._open > 0 or turn.told else self._judge(call[0])

    def _judge(self, tool: str) -> Loop | None:
        stale, same_call = self._counts()
        if stale < TURNS and not (same_call >= _TURNS_OF_SAME_CALL and self._turn.varied):
            return None
        self._turn.told = True
        turns = max(stale, same_call)
        past = [*self._past, self._turn]
        return Loop(self._shape(same_call), tool, turns, past[-min(turns, len(past))].began_us, self.model)

    def _counts(self) -> tuple[int, int]:
        turn, past = self._turn, self._past
        same_call = self._same_call + 1 if past and past[-1].calls == turn.calls else 1
        return 1 if turn.new and not turn.failed else self._stale + 1, same_call

    def _close(self, now_us: int) -> None:
        turn = self._turn
        if turn.calls or turn.new:
            # After an alert the count begins anew: whoever lets the agent go on gives it as many turns again.
            self._stale, self._same_call = (0, 0) if turn.told else self._counts()
            self._past.append(turn)
            self._turn = _Turn(now_us)

    def _shape(self, same_call: int) -> Shape:
        turns = [*self._past, self._turn][-TURNS:]
        if all(turn.failed for turn in turns):
            return "errors"
        if same_call >= TURNS:
            return "repeat"
        calls = [turn.calls for turn in turns]
        if any(all(a == b for a, b in zip(calls, calls[p:], strict=False)) for p in _PERIODS):
            return "cycle"
        return "same_result" if all(turn.results == turns[0].results for turn in turns) else "no_progress"
