"""An agent at its cap that waits for a person, who gives it more money or ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.money import parse_usd

from ._passage import config_here

if TYPE_CHECKING:
    from maestro_core import CapExceeded, Maestro

__all__ = ["ask_person", "can_pause"]


def can_pause() -> bool:
    """Return whether the graph around the caller could be resumed: without a checkpointer it would pause for ever."""
    return config_here().get("configurable", {}).get("__pregel_checkpointer") is not None


def ask_person(maestro: Maestro, run: str, error: CapExceeded, asked: int) -> bool:
    """Pause the graph for a person; return whether the run goes on, with the money that was granted.

    langgraph runs the node again from the top after a resume and replays the answers so far, so a grant is keyed by
    the node's run and the ordinal of the question: it counts once.

    Args:
        maestro: Where the money is.
        run: Whose it is.
        error: Why it cannot go on.
        asked: The ordinal of the question in this node, from 1.

    Raises:
        ValueError: If the answer is none that this understands; the message says what is.
    """
    from langgraph.types import interrupt

    answer = interrupt(
        {"reason": str(error), "run": run, "needed": str(error.needed), "bucket": error.bucket}
    )
    if answer == "end":
        return False
    if not isinstance(answer, dict) or not answer.keys() <= {"add", "by", "reason"}:
        raise ValueError(
            f'resume={answer!r}: answer {{"add": "0.50"}} (US dollars; "by", "reason" may follow) or "end"'
        )
    namespace = config_here().get("configurable", {}).get("checkpoint_ns", "")
    add = parse_usd(answer.get("add", 0), name="add")
    maestro.admission.resume(
        run, f"{namespace}#{asked}", add_nanos=add, by=answer.get("by"), reason=answer.get("reason")
    )
    return True
