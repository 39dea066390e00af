"""What the core says to a ledger: a store of three verbs and their journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ._alert import Note
    from ._caps import Meter
    from ._holds import Bucket, Held, Hold, OpenHold, Refused
    from ._journal import Record, Settlement, Sum

__all__ = ["Ledger", "SharedLedger"]


class Ledger(Protocol):
    """Where money is held and written down. All verbs are atomic, idempotent on `key`, and safe from any thread.

    Every verb raises `LedgerUnavailable` when the store cannot be reached or written.
    """

    url: str

    def now_us(self) -> int:
        """Return the store's time in microseconds; it never goes back."""
        ...

    def declare(self, meters: Sequence[Meter]) -> None:
        """Count for these meters from now on; a new one starts with this window's records and open holds."""
        ...

    def reserve(self, hold: Hold) -> Held | Refused:
        """Hold the amount in every bucket the call charges, or in none.

        Raises:
            ReservationClosed: If the key was settled or released before.
        """
        ...

    def settle(self, key: str, settlement: Settlement) -> Record:
        """Replace the hold by the true cost and journal it; also after the hold was presumed (a correction).

        Settling again with the same cost returns the first record.

        Raises:
            ReservationClosed: If the key is unknown, was released, or was settled at another cost.
        """
        ...

    def correct(self, key: str, truth: Settlement) -> Record:
        """Journal that a settled call cost something else, as the difference; its rows stay as they are.

        Correcting to what the journal says already returns the call's last row.

        Raises:
            ReservationClosed: If the key is unknown, still open, or was released.
        """
        ...

    def release(self, key: str, reason: str) -> Record:
        """Give the held money back and journal why. Releasing again returns the first record.

        Raises:
            ReservationClosed: If the key is unknown or was settled.
        """
        ...

    def refuse(self, hold: Hold, detail: Mapping[str, Any]) -> Record:
        """Journal that a call was refused; holds nothing."""
        ...

    def grant(self, key: str, run: str, detail: Mapping[str, Any]) -> Record:
        """Journal that a person let a run go on (`detail["add_nanos"]` more); again with the same key is the same grant."""
        ...

    def presume(self, *, older_than_us: int = 0, keys: Collection[str] = ()) -> list[Record]:
        """Count as spent every open hold whose owner is gone, was made before that time, or has one of the keys."""
        ...

    def meters(self) -> list[Meter]:
        """Return every meter that the ledger counts for."""
        ...

    def buckets(self, meter: Meter) -> list[Bucket]:
        """Return a meter's buckets of the current window (all buckets, where it has no windows)."""
        ...

    def holds(self) -> list[OpenHold]:
        """Return the open and the presumed holds, oldest first."""
        ...

    def records(
        self, *, since_us: int = 0, until_us: int | None = None, run: str | None = None
    ) -> Iterator[Record]:
        """Yield journal rows of calls reserved in [since_us, until_us), in the order they were written."""
        ...

    def sums(
        self,
        by: Sequence[str],
        *,
        since_us: int = 0,
        until_us: int | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[Sum]:
        """Add up the journal by dimensions (`provider` and `model` are dimensions too); `by=()` gives one total row."""
        ...

    def keep(self, key: str, kind: str, body: Mapping[str, Any], *, revision: int = 0) -> bool:
        """Write a note, if the note with this key is at that revision (0: there is none yet); return whether it was.

        So of several processes that want to be the first to tell something, one is.
        """
        ...

    def notes(self, kind: str, *, key: str | None = None, since_us: int = 0) -> list[Note]:
        """Return the notes of a kind that were written at or after that time, oldest first; or the one with a key."""
        ...

    def check(self) -> list[str]:
        """Compare every counter with the journal and the open holds; return one line for each difference."""
        ...

    def close(self) -> None:
        """Release the store. Further verbs raise `LedgerUnavailable`."""
        ...


@runtime_checkable
class SharedLedger(Protocol):
    """What a ledger has besides, if it keeps the waiters of several processes in order by their tickets.

    Maestro works with one that does not, too: then whoever asks first when money comes free gets it.
    """

    def changed(self) -> int:
        """Return a number that is another one after any write; cheap, since whoever waits asks for it often."""
        ...

    def withdraw(self, key: str) -> None:
        """Take back the ticket of a call that does not wait any more; nothing happens if it has none."""
        ...
