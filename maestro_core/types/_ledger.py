"""What the core says to a ledger, and what it gets back. A ledger is a store of three verbs and their journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from maestro_core.money import to_usd
from maestro_core.quick import quick

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from ._alert import Note
    from ._call import Attribution, Call, Cost
    from ._caps import Budget, Cap, Meter, Window

__all__ = [
    "Bucket", "CapStatus", "Fit", "Held", "Hold", "Kind", "Ledger", "OpenHold", "Record", "Refused", "Reservation",
    "Settlement", "SharedLedger", "Sum", "Ticket",
]  # fmt: skip

Kind = Literal["settled", "released", "presumed", "corrected", "refused", "granted", "repaired", "archived"]


@quick
@dataclass(frozen=True, slots=True)
class Bucket:
    """One running total: a meter, its values, its window. Amounts in nano-dollars.

    `spent` is settled, `held` belongs to open calls, `presumed` is counted for calls whose end nobody saw.
    """

    meter: Meter
    values: tuple[str, ...]
    window: Window | None
    spent: int = 0
    held: int = 0
    presumed: int = 0

    @property
    def used(self) -> int:
        """Everything that is not free: spent + held + presumed."""
        return self.spent + self.held + self.presumed

    @property
    def label(self) -> str:
        """The bucket's name, e.g. `customer=acme every day`."""
        return self.meter.label(self.values)


@quick
@dataclass(frozen=True, slots=True)
class Fit:
    """How far a hold may shrink, because the caller can set the request's output limit. Nano-dollars.

    The hold is `fixed` + as much output as suits: at most `ceiling` (the request's own limit), by default `comfort`
    or an eighth of what is free, whichever is more; when nothing else is held (or `rest` is set), whatever is left,
    but never less than `least`.
    """

    fixed_nanos: int
    ceiling_nanos: int
    comfort_nanos: int
    least_nanos: int
    rest: bool = False


@quick
@dataclass(frozen=True, slots=True)
class Ticket:
    """A caller's place in the line of all processes that share a ledger. A ledger of one process may ignore it.

    While a caller waits, the ledger keeps what it wants at the bucket that lacks room for it: later callers of other
    processes get only what is left beyond that. So nobody is overtaken, and nobody waits for money that suffices for all.

    Args:
        process: Who asks. A process's own tickets do not stand in its waiters' way: it has a line of its own.
        waits: Whether the caller waits, if it is refused because money is held. If not, its ticket is taken back, and
            every ticket stands in its way.
        holds: What the process holds, or has taken within a second, at the buckets that the call charges; nano-dollars.
        inside: Whether the call is made inside an open one, whose money nobody gets before: it goes before all others.
    """

    process: str
    waits: bool = False
    inside: bool = False
    holds: Mapping[tuple[str, tuple[str, ...]], int] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True)
class Hold:
    """A request to hold money for one call in every bucket that it charges.

    Args:
        key: The call's identity.
        amount_nanos: Its worst case.
        provider: Provider id.
        model: Model asked for.
        attribution: Complete: every dimension, `run` included where known.
        limits: The meters to enforce, with the limit in nano-dollars that applies to each of their buckets.
            Meters that only other processes cap are counted too, and not enforced.
        fit: How far the amount may shrink; None if it is fixed.
        ticket: The caller's place in the line of all processes; None if it asks out of turn.
    """

    key: str
    amount_nanos: int
    provider: str
    model: str
    attribution: Attribution
    limits: tuple[tuple[Meter, int], ...] = ()
    fit: Fit | None = None
    ticket: Ticket | None = None

    @property
    def needed_nanos(self) -> int:
        """The least that has to be free for the call to be admitted."""
        return self.fit.fixed_nanos + self.fit.least_nanos if self.fit else self.amount_nanos

    @property
    def wanted_nanos(self) -> int:
        """What a call waits for while others hold money: enough that hardly any answer is cut."""
        if self.fit is None:
            return self.amount_nanos
        return self.fit.fixed_nanos + min(self.fit.ceiling_nanos, self.fit.comfort_nanos)


@quick
@dataclass(frozen=True, slots=True)
class Held:
    """The money is held. `at_us` is the store's time, which decides the windows."""

    key: str
    amount_nanos: int
    at_us: int


@quick
@dataclass(frozen=True, slots=True)
class Refused:
    """The money is not held, anywhere. `bucket` (as it stands) is the one that lacks the most for `needed_nanos`.

    `promised_nanos` of what is free there belong to callers that have waited longer. With `turn_us`, the money suffices,
    and the caller's turn comes after so many microseconds in line, unless others come before.
    """

    bucket: Bucket
    limit_nanos: int
    needed_nanos: int
    at_us: int
    promised_nanos: int = 0
    turn_us: int = 0

    @property
    def spent(self) -> bool:
        """Whether the money is gone: not even what other calls hold would suffice."""
        return self.bucket.spent + self.bucket.presumed + self.needed_nanos > self.limit_nanos


@quick
@dataclass(frozen=True, slots=True)
class OpenHold:
    """Money that is held now, or was presumed spent and may still be corrected."""

    key: str
    amount_nanos: int
    at_us: int
    provider: str
    model: str
    attribution: Attribution
    owner: str
    state: Literal["held", "presumed"]


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a call came to.

    Args:
        cost_nanos: The truth, or the best bound on it.
        usage: Tokens and fees by kind (the totals of `Usage`).
        estimated_nanos: How much of the cost is an estimate; 0 if the provider reported its usage.
        sheet_nanos: What the price book alone would say, or None if it has no price.
        price_id: Which price was used.
        price_book: Which price book, e.g. `"genai-prices 0.2.3"`.
        unpriced: Token kinds that have no rate; `("*",)` if the whole call has no price.
        model: The model that answered, if it differs from the one asked for.
        detail: Further facts as JSON values: `latency_ms`, `reason`, `fitted_output_tokens`, ...
    """

    cost_nanos: int
    usage: Mapping[str, int] = field(default_factory=dict)
    estimated_nanos: int = 0
    sheet_nanos: int | None = None
    price_id: str = ""
    price_book: str = ""
    unpriced: tuple[str, ...] = ()
    model: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of the journal. Amounts are what this row adds, so sums over rows are always right.

    `kind`: `settled` (usage known or estimated), `released` (provably not billed), `presumed` (its end was not seen:
    counted at the hold), `corrected` (the difference that a late truth makes), `refused` (never sent),
    `granted` (a person let a run spend more: `detail["add_nanos"]`), `repaired` (counters were put right),
    `archived` (old rows were moved to a file).
    `calls` is 1 on the row that first counts the call and 0 on the others. `at` is when it was reserved, which decides
    its window; `written_at` when the row was written.
    """

    seq: int
    kind: Kind
    key: str
    at: datetime
    written_at: datetime
    provider: str
    model: str
    attribution: Attribution
    cost_nanos: int = 0
    held_nanos: int = 0
    estimated_nanos: int = 0
    sheet_nanos: int | None = None
    calls: int = 0
    usage: Mapping[str, int] = field(default_factory=dict)
    price_id: str = ""
    price_book: str = ""
    unpriced: tuple[str, ...] = ()
    overrun: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> Decimal:
        """The amount in US dollars."""
        return to_usd(self.cost_nanos)

    @property
    def run(self) -> str | None:
        """The run that the call belongs to."""
        return self.attribution.dimensions.get("run")


@dataclass(frozen=True, slots=True)
class Sum:
    """One row of a report as the ledger adds it up; amounts in nano-dollars."""

    values: tuple[str, ...]
    cost_nanos: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_nanos: int = 0
    unpriced_calls: int = 0


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Money held for one call: held -> settled | released | presumed.

    Args:
        key: The call's identity.
        call: The call, with its attribution complete.
        held_nanos: What is held; 0 where no cap applies and no price is known.
        at: The ledger's time, which decides the windows.
        bound: How the hold was computed, or None where no price is known.
        capped: Whether a cap applies.
        fitted_output_tokens: The output limit that the request must carry, if the hold was fitted below its own.
        spooled: Whether the ledger could not be reached: the call is written down once it can be again.
        detail: Facts for the row that settles it, as JSON values: the decision of a routed call.
    """

    key: str
    call: Call
    held_nanos: int
    at: datetime
    bound: Cost | None = None
    capped: bool = False
    fitted_output_tokens: int | None = None
    spooled: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapStatus:
    """Where one bucket of one cap stands. Amounts in US dollars; `resets_at` is aware UTC or None.

    `other_limits` are those that other processes enforce there now, where they are not `limit`.

    `projected` is what its window comes to at its end at the pace so far, `reached_at` when the limit is reached: both
    None where there is no window, or too little of it has passed.
    """

    cap: Cap | Budget
    bucket: str
    limit: Decimal
    spent: Decimal
    held: Decimal
    presumed: Decimal
    headroom: Decimal
    resets_at: datetime | None
    other_limits: tuple[Decimal, ...] = ()
    projected: Decimal | None = None
    reached_at: datetime | None = None


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
