"""Who of all the processes that share a ledger waits, since when, and what is set aside for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maestro_core.types import Refused

from ._rows import packed_values, unpacked_values

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping, Sequence

    from maestro_core.types import Hold

    from ._rules import BucketName, Place

__all__ = ["Company", "Standing", "promised", "read", "renewed", "stale", "too_soon", "write"]

# A ticket that was not seen for so long belongs to nobody: its process is dead, stopped, or does not get to run.
_STALE_US = 1_000_000

# A waiter tries at least every 0.55 s, and often sooner; then it does not always say that it is there, which is a write.
_BEAT_US = 150_000

# A process that holds more than an eighth of what is free stands in line before it takes more: for as much of this time
# as it has of what it holds and what is free together. Chosen so that four processes which begin together share a
# cap worth ten calls. One more call of ten makes a difference longer than the pause between two looks.
_PART = 8
_LONGEST_US = 500_000

# How long a process does not know yet whether there are others, and for how long it remembers that there were.
_STRANGE_US = 3_000_000
_REMEMBERED_US = 600_000_000


class Standing(NamedTuple):
    """One ticket as a ledger keeps it; times in microseconds of a clock that all processes share and nobody sets."""

    key: str
    process: str
    at: BucketName
    inside: bool
    since_us: int
    seen_us: int
    wanted_nanos: int

    def alive(self, now_us: int) -> bool:
        """Return whether somebody still waits with it; after a restart of the machine the clock starts anew."""
        return abs(now_us - self.seen_us) <= _STALE_US

    @property
    def rank(self) -> tuple[bool, int, str]:
        """The order in line: calls inside open ones first, because nobody gets the money around them before."""
        return not self.inside, self.since_us, self.key


def promised(standing: Mapping[str, Standing], hold: Hold, now_us: int) -> dict[BucketName, int]:
    """Return what is set aside at each bucket for callers that go before this one."""
    ticket = hold.ticket
    if ticket is None or ticket.inside or not standing:
        return {}
    own = standing.get(hold.key)
    rank = own.rank if own and own.alive(now_us) else None
    aside: dict[BucketName, int] = {}
    for one in standing.values():
        own_line = one.key == hold.key or (ticket.waits and one.process == ticket.process)
        if own_line or not one.alive(now_us) or (rank is not None and one.rank > rank):
            continue
        aside[one.at] = aside.get(one.at, 0) + one.wanted_nanos
    return aside


class Company:
    """Whether other processes are at the same ledger: they are known by their writes."""

    def __init__(self) -> None:
        self._began_us: int | None = None
        self._met_us: int | None = None
        self._version: int | None = None

    def expected(self, version: int, now_us: int) -> bool:
        """Return whether others may come; `version` is another one after a write of theirs."""
        if self._began_us is None:
            self._began_us = now_us
        elif version != self._version:
            self._met_us = now_us
        self._version = version
        met = self._met_us is not None and now_us - self._met_us < _REMEMBERED_US
        return met or now_us - self._began_us < _STRANGE_US


def too_soon(
    standing: Mapping[str, Standing],
    hold: Hold,
    places: Iterable[tuple[Place, Sequence[int]]],
    at_us: int,
    now_us: int,
) -> Refused | None:
    """Return the bucket at which a process that has much already stands in line before it takes more, if there is one.

    Money goes to whoever asks first. Where it becomes scarce, the first process would take all of it in the milliseconds
    before the others ask. A run lives in one process, so nobody else is expected at its buckets.
    """
    ticket, own = hold.ticket, standing.get(hold.key)
    if ticket is None or not ticket.waits or ticket.inside or not ticket.holds:
        return None
    stood_us = now_us - own.since_us if own and own.alive(now_us) else 0
    limits = {meter.id: limit for meter, limit in hold.limits if "run" not in meter.per}
    for place, counter in places:
        limit = limits.get(place.key[0])
        holds = ticket.holds.get(place.key[:2], 0)
        if limit is None or holds * _PART <= (free := limit - sum(counter)):
            continue
        left_us = _LONGEST_US * holds // (holds + max(free, 0)) - stood_us
        if left_us > 0:
            return Refused(place.bucket(counter), limit, hold.needed_nanos, at_us, turn_us=left_us)
    return None


def renewed(
    standing: Mapping[str, Standing], hold: Hold, outcome: int | Refused, now_us: int
) -> Standing | None:
    """Return the ticket that a caller has after it was answered: the same, another one, or none."""
    ticket, own = hold.ticket, standing.get(hold.key)
    if ticket is None or not ticket.waits or not isinstance(outcome, Refused) or outcome.spent:
        return None
    kept = own if own and own.alive(now_us) else None
    last_us = max((one.since_us for one in standing.values()), default=0)
    new = Standing(
        hold.key,
        ticket.process,
        (outcome.bucket.meter.id, outcome.bucket.values),
        ticket.inside,
        kept.since_us if kept else max(now_us, last_us + 1),  # a clock that stands still makes nobody equal
        now_us,
        hold.wanted_nanos,
    )
    if kept and kept == new._replace(seen_us=kept.seen_us) and now_us - kept.seen_us < _BEAT_US:
        return kept
    return new


def stale(standing: Iterable[Standing], now_us: int) -> list[str]:
    """Return the keys of tickets that belong to nobody."""
    return [one.key for one in standing if not one.alive(now_us)]


def read(connection: sqlite3.Connection) -> dict[str, Standing]:
    """Return the tickets of a SQLite file; there are none, nearly always."""
    return {
        key: Standing(key, process, (meter, unpacked_values(value)), bool(inside), *numbers)
        for key, process, meter, value, inside, *numbers in connection.execute("SELECT * FROM tickets")
    }


def write(
    connection: sqlite3.Connection,
    standing: Mapping[str, Standing],
    key: str,
    new: Standing | None,
    now_us: int,
) -> None:
    """Bring a call's ticket in a SQLite file up to date; whoever writes one also clears what belongs to nobody."""
    if new is standing.get(key):
        return
    if new is None:
        connection.execute("DELETE FROM tickets WHERE key = ?", (key,))
        return
    gone = [(other,) for other in stale(standing.values(), now_us)]
    connection.executemany("DELETE FROM tickets WHERE key = ?", gone)
    meter, values = new.at
    row = (key, new.process, meter, packed_values(values), new.inside, *new[4:])
    connection.execute("INSERT OR REPLACE INTO tickets VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
