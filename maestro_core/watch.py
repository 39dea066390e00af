"""Looks for spikes and leaks in a ledger, minute by minute; of all processes on it, one does.

What is new in the ledger is the difference between two sums of its hourly totals since a fixed hour. So calls that
settle late are seen, whichever process made them, and a call's own path has nothing to do with it.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from .anomaly import Burn
from .errors import LedgerError
from .history import DIMENSIONS, EVERYTHING, past
from .money import to_nanos
from .suspicions import Suspicions
from .types import UNATTRIBUTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .alerts import Alerts
    from .anomaly import Detector
    from .routes import AlertSettings
    from .types import Ledger, Note

__all__ = ["Watch"]

_log = logging.getLogger("maestro")

_MINUTE_US = 60_000_000
_HOUR_US = 60 * _MINUTE_US
# Calls that take longer than this are not seen.
_LATEST_US = 2 * _HOUR_US
_EVERY_S = 10.0
# Where looking takes long, it is done so many times as seldom.
_TIMES = 20
# Whoever has not been heard of for so long has left the watch to others.
_ABSENT_US = 90_000_000
# After a longer gap what was spent meanwhile cannot be told by minutes: it is learned as the past.
_LONGEST_GAP = 120
_PAST = 21 * 24 * 60  # minutes
_BREATH_S = 30.0
_SAVE_EVERY = 30  # minutes
_SAVE_S = 2.0  # when it closes; what is not saved then is a few minutes older


class Watch:
    """The watch over one ledger.

    Args:
        settings: How much money makes an alert.
        ledger: What is watched, and where what was learned is kept.
        alerts: Where incidents are told.
        detectors: Those of plugins, besides Maestro's own.
    """

    def __init__(
        self,
        settings: AlertSettings,
        ledger: Ledger,
        alerts: Alerts,
        detectors: Sequence[Detector] = (),
    ) -> None:
        self._ledger = ledger
        self._burn = Burn(least_nanos=to_nanos(settings.min_usd))
        self._detectors: tuple[Detector, ...] = (self._burn, *detectors)
        self._suspicions = Suspicions(settings, ledger, alerts)
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._revision = 0  # of the watch's note, while it is ours
        self._since_us = 0  # from when on the sums count
        self._sums: dict[str, int] = {}
        self._minute = 0  # up to which everything is seen
        self._unsaved: dict[str, None] = {}
        self._revisions: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._pid = os.getpid()

    def start(self) -> None:
        """Watch from a thread of its own, from now on; again does nothing."""
        if self._thread is None and self._pid == os.getpid():
            self._thread = threading.Thread(target=self.run, name="maestro-watch", daemon=True)
            self._thread.start()

    def run(self) -> None:
        """Watch until `close`."""
        pause_s = _EVERY_S
        while not self._closing.wait(pause_s):
            began_s = time.monotonic()
            try:
                self.look()
            except LedgerError as error:
                _log.warning("spend is not watched for now: %s", error)
            except Exception:  # noqa: BLE001 - a watch that ends would look like a quiet night
                _log.exception("the watch stumbled; it goes on")
            pause_s = max(_EVERY_S, _TIMES * (time.monotonic() - began_s))

    def close(self, until_s: float | None = None) -> None:
        """End the watch, and keep what was learned; until then (`time.monotonic`), at most, or for two seconds."""
        self._closing.set()
        until_s = time.monotonic() + _SAVE_S if until_s is None else until_s
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(max(0.0, min(1.0, until_s - time.monotonic())))
        if self._revision:
            try:
                while self._unsaved and time.monotonic() < until_s:
                    self._save(list(self._unsaved)[:100])
                self._stand(leaving=True)
            except LedgerError as error:
                _log.warning("what the watch has learned could not be kept: %s", error)

    def look(self) -> bool:
        """See what the last minutes have spent, if it is this process's turn; return whether it is."""
        now_us = self._ledger.now_us()
        minute = now_us // _MINUTE_US
        if self._revision and minute <= self._minute:
            return True
        if not self._revision and not self._take_over(now_us):
            return False
        spent = self._spent(now_us)
        gap = minute - self._minute
        if 0 < gap <= _LONGEST_GAP:
            self._observe(spent, self._minute, gap)
        self._minute = max(self._minute, minute)
        return self._stand()

    # -- what was spent -------------------------------------------------------------------------------------------

    def _spent(self, now_us: int) -> dict[str, int]:
        """Return what each series has spent since it was last asked for."""
        sums = self._totals(self._since_us)
        spent = {name: total - self._sums.get(name, 0) for name, total in sums.items()}
        since_us = _hour(now_us - _LATEST_US)
        if since_us > self._since_us:
            self._since_us, sums = since_us, self._totals(since_us)
        self._sums = sums
        return {name: nanos for name, nanos in spent.items() if nanos > 0}

    def _totals(self, since_us: int) -> dict[str, int]:
        found = {EVERYTHING: sum(row.cost_nanos for row in self._ledger.sums((), since_us=since_us))}
        for dimension in DIMENSIONS:
            for row in self._ledger.sums((dimension,), since_us=since_us):
                if row.values[0] != UNATTRIBUTED:
                    found[f"{dimension}={row.values[0]}"] = row.cost_nanos
        return found

    # -- what it shows --------------------------------------------------------------------------------------------

    def _observe(self, spent: Mapping[str, int], first: int, minutes: int) -> None:
        """Show the detectors what was spent in so many minutes, evenly."""
        found = []
        for name in {**spent, **dict.fromkeys(self._burn.alarmed())}:
            self._unsaved[name] = None
            nanos = spent.get(name, 0)
            for n in range(minutes):
                share = nanos * (n + 1) // minutes - nanos * n // minutes
                found += [(name, finding) for finding in self._findings(name, first + n, share)]
        # The dearest, save that a team says more than everything.
        for name, finding in sorted(found, key=lambda each: (each[0] == EVERYTHING, -each[1].excess_nanos)):
            self._suspicions.add(name, finding)

    def _findings(self, name: str, minute: int, nanos: int) -> Iterator[Any]:
        for detector in self._detectors:
            try:
                finding = detector.observe(name, minute, nanos)
            except Exception:  # noqa: BLE001 - a plugin's
                _log.exception("detector %s failed over %s; the others go on", detector.name, name)
                continue
            if finding is not None:
                yield finding

    # -- taking turns ---------------------------------------------------------------------------------------------

    def _take_over(self, now_us: int) -> bool:
        notes = self._ledger.notes("watch", key="watch")
        note = notes[0] if notes else None
        if note and note.body["owner"] and now_us - note.at_us < _ABSENT_US:
            return False
        self._revision = note.revision if note else 0
        if not self._keep(note.body if note else {}):
            return False
        for each in self._ledger.notes("learned"):
            self._load(each)
        last = dict(note.body) if note else {}
        minute, since_us = now_us // _MINUTE_US, _hour(now_us - _LATEST_US)
        before = int(last.get("minute", 0))
        if minute - before > _LONGEST_GAP:
            sums = self._totals(since_us)
            if not self._remember(max(before, minute - _PAST), minute, last):
                return False
            self._minute, self._since_us, self._sums = minute, since_us, sums
        else:
            self._minute, self._since_us = before, int(last["since_us"])
            self._sums = {name: int(nanos) for name, nanos in last["sums"].items()}
        # What was seen since a series was last kept, or by nobody, is not taken for silence.
        self._burn.skip(self._minute)
        return True

    def _remember(self, since: int, until: int, last: Mapping[str, Any]) -> bool:
        """Learn from what the ledger knows of the time that nobody watched; return False if it is somebody else's turn."""
        said_s = time.monotonic()
        for minute, minutes, spent in past(self._ledger, since, until):
            began_s = time.monotonic()
            self._unsaved |= dict.fromkeys(self._burn.learn(minute, minutes, spent))
            if began_s - said_s > _BREATH_S:
                said_s = began_s
                if not self._keep(last):
                    return False
            # Others want the interpreter, too.
            if self._closing.wait(min(1.0, time.monotonic() - began_s)):
                self._keep(last, leaving=True)
                self._revision = 0
                return False
        return True

    def _stand(self, *, leaving: bool = False) -> bool:
        """Say that this process is still there, and what it has seen; return whether nobody else has taken over."""
        body = {"minute": self._minute, "since_us": self._since_us, "sums": self._sums}
        if not self._keep(body, leaving=leaving):
            return False
        if self._unsaved and not leaving:
            count = len(self._unsaved) // _SAVE_EVERY + 1
            self._save(list(self._unsaved)[:count])
        return True

    def _keep(self, body: Mapping[str, Any], *, leaving: bool = False) -> bool:
        body = {**body, "owner": "" if leaving else self._owner}
        if not self._ledger.keep("watch", "watch", body, revision=self._revision):
            self._revision = 0
            return False
        self._revision += 1
        return True

    def _save(self, names: Sequence[str]) -> None:
        for name in names:
            self._unsaved.pop(name, None)
            for detector in self._detectors:
                state = detector.dump(name)
                key = f"learned {detector.name} {name}"
                if state and self._ledger.keep(
                    key,
                    "learned",
                    {"detector": detector.name, "series": name, "state": state},
                    revision=self._revisions.get(key, 0),
                ):
                    self._revisions[key] = self._revisions.get(key, 0) + 1

    def _load(self, note: Note) -> None:
        self._revisions[note.key] = note.revision
        for detector in self._detectors:
            if detector.name == note.body["detector"]:
                detector.load(note.body["series"], note.body["state"])


def _hour(at_us: int) -> int:
    return max(0, at_us) // _HOUR_US * _HOUR_US
