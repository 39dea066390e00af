"""What is done about agents that go round in circles: an alert, or a halt through the same latch as a cap's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clock import SystemClock
from .errors import CapExceeded
from .loops import Guard

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from .loops import Loop, Scope
    from .maestro import Maestro
    from .types import Attribution, Call

__all__ = ["UNSEEN", "Circles", "Use"]

# Stands for what an adapter does not see of a tool; None may well be an answer.
UNSEEN = object()

_log = logging.getLogger("maestro")


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a tool that is under way."""

    scope: Scope
    tool: str
    where: Attribution
    asked: int | None


class Circles:
    """Follows the tools of every agent of one Maestro, as the `on_loop` setting says. None of it raises."""

    def __init__(self, maestro: Maestro) -> None:
        self._maestro = maestro
        settings = maestro.settings
        self._guard = Guard(SystemClock(), settings.polling_tools) if settings.on_loop != "off" else None

    def ask(self, scope: Scope, call: Call) -> None:
        """An agent calls its model."""
        if self._guard is not None and scope != _NOWHERE and call.operation == "chat":
            loop = self._guard.ask(scope, len(call.history), call.model)
            if loop is not None:
                self._found(loop, scope, call.attribution)

    def say(self, scope: Scope, call: Call, reply: Mapping[str, object]) -> None:
        """Its model has answered."""
        if self._guard is not None and scope != _NOWHERE and call.operation == "chat":
            self._guard.say(scope, len(call.history), reply)

    def begin(self, scope: Scope, tool: str, where: Attribution, arguments: object) -> Use | None:
        """It uses a tool."""
        if self._guard is None or scope == _NOWHERE:
            return None
        use = Use(scope, tool, where, self._guard.asked(arguments))
        self._guard.begin(scope)
        return use

    def end(self, use: Use, result: object, *, failed: bool, error: BaseException | None) -> None:
        """The tool has answered, or failed."""
        if self._guard is None:
            return
        if isinstance(error, CapExceeded) or (error is None and result is UNSEEN):
            self._guard.skip(
                use.scope
            )  # a refusal is told already; of what nobody saw nothing is to be learned
            return
        if error is not None:
            result, failed = f"{type(error).__qualname__}: {error}", True
        loop = self._guard.end(use.scope, use.tool, use.asked, result, failed=failed)
        if loop is not None:
            self._found(loop, use.scope, use.where)

    def forget(self, root: Hashable) -> None:
        """An outermost run is over."""
        if self._guard is not None:
            self._guard.forget(root)

    def _found(self, loop: Loop, scope: Scope, where: Attribution) -> None:
        try:
            self._maestro.runs.suspect("loop", loop.tool, where)
            self._maestro.incidents.looped(loop, scope, where)
        except Exception:  # noqa: BLE001 - the agent goes on whatever becomes of an alert
            _log.exception("a loop of %s could not be reported", loop.tool or "a model")


# A tool or a call outside of any run: nobody's turn.
_NOWHERE: Scope = (None, ())
