"""What other middleware does to ours, as far as an agent's run shows it."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from langchain_core.messages import AIMessage

from maestro_core.errors import MaestroWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from langchain_core.messages import BaseMessage

__all__ = ["Watch"]

_MOST_TURNS = 10_000
_FIX = "put MaestroMiddleware first in the agent's middleware list"


@dataclass(slots=True)
class _Turn:
    """One run of the agent: the messages that it began with, and the answers that came through the door."""

    known: set[str | None]
    refused: str = ""  # the refusal that the door raised last, if nothing went through it since


@dataclass(slots=True)
class Watch:
    """Compares what went through one middleware with what the agent ended with; warns once. Safe from any thread."""

    _turns: dict[str, _Turn] = field(default_factory=dict)
    _warned: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, turn: str, messages: Iterable[BaseMessage]) -> None:
        """A run has begun with these messages."""
        with self._lock:
            self._turns[turn] = _Turn({message.id for message in messages})
            while len(self._turns) > _MOST_TURNS:  # runs that failed never end
                del self._turns[next(iter(self._turns))]

    def passed(self, turn: str, messages: Iterable[BaseMessage]) -> None:
        """These answers came through the door."""
        found = self._turns.get(turn)
        if found is not None:
            found.known.update(message.id for message in messages)
            found.refused = ""

    def refused(self, turn: str, error: Exception) -> None:
        """The door has raised a refusal, which should end the agent."""
        found = self._turns.get(turn)
        if found is not None:
            found.refused = str(error)

    def end(self, turn: str, messages: Sequence[BaseMessage]) -> None:
        """The agent has ended well; warn if that cannot be.

        An answer without an identity cannot be told from others, so one that came through the door vouches for all.
        """
        with self._lock:
            found = self._turns.pop(turn, None)
        if found is None or self._warned:
            return
        strange = [
            m for m in messages if isinstance(m, AIMessage) and m.usage_metadata and m.id not in found.known
        ]
        if found.refused:
            self._warn(
                f"another middleware swallowed a refusal, and the agent went on as if nothing had happened: "
                f"{found.refused}. Let CapExceeded pass there, or {_FIX}"
            )
        elif strange and None not in found.known:
            self._warn(
                f"an answer reached the agent that no call through MaestroMiddleware gave ({strange[-1].id}): another "
                "middleware stands before it and answers from a cache, or calls a model itself, which no cap stops and "
                f"nothing counts; {_FIX}"
            )

    def _warn(self, message: str) -> None:
        self._warned = True
        warnings.warn(message, MaestroWarning, stacklevel=2)
