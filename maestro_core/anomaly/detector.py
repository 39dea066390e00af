"""What a detector is: a plain object that is shown each series' spend, minute by minute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Detector", "Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A series is not as it usually is, or is so again.

    Args:
        kind: `"spike"`: far above the usual; `"leak"`: a little above it, for long; `"recovered"`: the end of either.
            A plugin's detector may have kinds of its own.
        since_minute: When it began, in minutes since 1970 UTC.
        excess_nanos: What was spent since then beyond the usual.
        usual_nanos: What would have been usual since then.
        pace_nanos: What is spent in an hour now.
        usual_pace_nanos: What would be usual in an hour now.
    """

    kind: str
    since_minute: int
    excess_nanos: int
    usual_nanos: int
    pace_nanos: int
    usual_pace_nanos: int


class Detector(Protocol):
    """Looks at every series; add one with the hook `maestro_detectors`. It is called from one thread at a time."""

    name: str

    def observe(self, series: str, minute: int, spent_nanos: int) -> Finding | None:
        """Look at what a series has spent in a minute; minutes never go back, and those without spend may be left out.

        Args:
            series: E.g. `team=growth`.
            minute: Minutes since 1970 UTC.
            spent_nanos: Nano-dollars.
        """
        ...

    def dump(self, series: str) -> Mapping[str, Any]:
        """Return what was learned of a series, as JSON values, for `load` after a restart; may be empty."""
        ...

    def load(self, series: str, state: Mapping[str, Any]) -> None:
        """Take up what `dump` returned."""
        ...
