"""How an agent leaves at a cap, in words and rules that are the same for every framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .forks import fork_safe_lock

if TYPE_CHECKING:
    from collections.abc import Collection

    from .errors import CapExceeded

__all__ = ["CUT", "LAST_WORDS", "LastCalls", "check_exit", "farewell", "stops_only_the_tool"]

LAST_WORDS = "The budget of this run is used up. Give your best answer now from what you have; use no tools."

# What providers call it when an answer ended because its output limit was reached.
CUT = frozenset({"length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens"})

_MOST_RUNS = 10_000


def check_exit(exit_behavior: str, known: Collection[str]) -> None:
    """Check an `exit_behavior` argument.

    Raises:
        ValueError: If it is none of the known ones.
    """
    if exit_behavior not in known:
        raise ValueError(f"exit_behavior={exit_behavior!r} is not one of {', '.join(known)}")


def farewell(error: CapExceeded) -> str:
    """Return the message that ends an agent: what the model had said, if its answer was cut, and why it stopped."""
    partial = f"{error.partial}\n\n" if error.partial else ""
    return f"{partial}Stopped: {error}"


def stops_only_the_tool(error: CapExceeded, exit_behavior: str) -> bool:
    """Return whether a refusal inside a tool is told to the model, and the run goes on; else it is raised.

    A cap on the tool stops the tool. Any other cap stops the agent at its next model call, which leaves as
    `exit_behavior` says.
    """
    own = "tool" in error.cap.per or any(name == "tool" for name, _ in error.cap.where)
    return own or exit_behavior in {"end", "wrap_up"}


class LastCalls:
    """Which runs had their last call; there is one in a run."""

    def __init__(self) -> None:
        self._runs: dict[str, None] = {}  # a dict keeps their order
        self._lock = fork_safe_lock()

    def __contains__(self, run: str) -> bool:
        return run in self._runs

    def add(self, run: str) -> None:
        """A run has had its last call; the oldest runs are forgotten first."""
        with self._lock:
            self._runs[run] = None
            while len(self._runs) > _MOST_RUNS:
                del self._runs[next(iter(self._runs))]
