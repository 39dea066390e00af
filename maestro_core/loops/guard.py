"""The tracks of all agents that are under way in a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maestro_core.forks import fork_safe_lock

from .fingerprints import fingerprint, outcome, spoken
from .tracks import Loop, Track

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

    from maestro_core.clock import Clock

__all__ = ["Guard", "Scope"]

# More agents than a process runs at once; the one longest without news is forgotten first.
_MOST = 2_000

# One agent in one run of it.
Scope = tuple["Hashable", "Hashable"]


class Guard:
    """Follows each agent's tools; safe from any thread.

    Args:
        clock: What time it is.
        polling: Names of tools that may be asked the same again and again.
    """

    def __init__(self, clock: Clock, polling: Collection[str] = ()) -> None:
        self._clock = clock
        self._polling = frozenset(polling)
        self._tracks: dict[Scope, Track] = {}
        self._lock = fork_safe_lock()

    def ask(self, scope: Scope, context: int, model: str = "") -> Loop | None:
        """An agent's model is asked, with so many messages; return the loop that this closes."""
        with self._lock:
            now_us = self._clock.now_us()
            track = self._track(scope, now_us)
            track.model = model
            return track.ask(context, now_us)

    def say(self, scope: Scope, context: int, reply: Mapping[str, object]) -> None:
        """The model has answered to so many messages."""
        answer = spoken(reply)
        with self._lock:
            self._track(scope).say(context, answer)

    def begin(self, scope: Scope) -> None:
        """A tool begins."""
        with self._lock:
            self._track(scope).begin()

    def end(self, scope: Scope, tool: str, asked: int | None, result: object, *, failed: bool) -> Loop | None:
        """A tool has ended; return the loop that this closes.

        Args:
            scope: Whose tool it is.
            tool: Its name.
            asked: The fingerprint of its arguments; None if there were none.
            result: What it answered, or its error; only a hash of it is kept.
            failed: Whether it failed.
        """
        if tool in self._polling:
            self.skip(scope)
            return None
        came = outcome(result, failed=failed)
        with self._lock:
            return self._track(scope).end(tool, asked or 0, came, plain=asked is None)

    def skip(self, scope: Scope) -> None:
        """A tool has ended of which nothing is to be learned."""
        with self._lock:
            self._track(scope).skip()

    def asked(self, arguments: object) -> int | None:
        """Return the fingerprint of a tool's arguments; None if there are none."""
        return fingerprint(arguments) if arguments else None

    def forget(self, root: Hashable) -> None:
        """An agent's outermost run is over."""
        with self._lock:
            for scope in [scope for scope in self._tracks if scope[0] == root]:
                del self._tracks[scope]

    def _track(self, scope: Scope, now_us: int | None = None) -> Track:
        track = self._tracks.pop(scope, None)
        if track is None:
            track = Track(self._clock.now_us() if now_us is None else now_us)
            while len(self._tracks) >= _MOST:
                del self._tracks[next(iter(self._tracks))]
        self._tracks[scope] = track
        return track
