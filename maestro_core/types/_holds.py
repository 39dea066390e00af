"""What a call asks a ledger to hold, and what it gets: from the bucket that has room to the reservation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from maestro_core.quick import quick

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from ._call import Attribution, Call, Cost
    from ._caps import Meter, Window

__all__ = ["Bucket", "Fit", "Held", "Hold", "OpenHold", "Refused", "Reservation", "Ticket"]


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
