"""Corrections of recorded calls: by today's prices, or by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maestro_core.errors import MaestroError
from maestro_core.plugins import observe
from maestro_core.quote import Quotes
from maestro_core.types import Settlement

if TYPE_CHECKING:
    from maestro_core.maestro import Maestro
    from maestro_core.types import Record

__all__ = ["Change", "Repricing", "correct_by_hand", "price_again"]


@dataclass(slots=True)
class Change:
    """What corrections of one provider's model come to; amounts in nano-dollars."""

    calls: int = 0
    before: int = 0
    after: int = 0


@dataclass(slots=True)
class Repricing:
    """What pricing a period again found.

    Attributes:
        changes: By provider and model, of calls that cost something else now, or got a price.
        unchanged: How many calls cost the same.
        skipped: How many cannot be priced again: no usage was reported, or there is no price still.
    """

    changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    unchanged: int = 0
    skipped: int = 0


@dataclass(slots=True)
class _Counted:
    """What all rows of a call add up to so far."""

    cost: int = 0
    estimated: int = 0
    unpriced: bool = False
    released: bool = False

    def add(self, record: Record) -> None:
        self.cost += record.cost_nanos
        self.estimated += record.estimated_nanos
        self.unpriced = bool(record.unpriced)
        self.released = self.released or record.kind == "released"


def correct_by_hand(maestro: Maestro, key: str, cost_nanos: int) -> Record:
    """Journal what a person says that a call cost: one presumed spent, or settled before.

    Raises:
        MaestroError: If the call is still open: its process is alive and will settle it.
        ReservationClosed: If the ledger does not know the call, or it was released.
    """
    truth = Settlement(cost_nanos=cost_nanos, detail={"reason": "corrected by hand"})
    hold = next((each for each in maestro.ledger.holds() if each.key == key), None)
    if hold is None:
        record = maestro.ledger.correct(key, truth)
    elif hold.state == "presumed":
        record = maestro.ledger.settle(key, truth)
    else:
        pid = hold.owner.partition("-")[0]
        raise MaestroError(
            f"call {key} is still open in process {pid}, which will settle it; it can be corrected afterwards"
        )
    observe(maestro.plugins, "maestro_settled", record=record)
    return record


def price_again(maestro: Maestro, since_us: int, until_us: int | None, *, write: bool) -> Repricing:
    """Price the calls of a period again; with `write`, journal a correction for each that differs.

    The journal is read several times, so that only calls with more than one row are kept in memory.
    """
    quotes, found = Quotes(maestro.plugins, maestro.settings.prices), Repricing()
    counted: dict[str, _Counted] = {}
    for record in maestro.ledger.records(since_us=since_us, until_us=until_us):
        if record.kind in {"presumed", "corrected", "released"}:
            counted[record.key] = _Counted()
    for record in maestro.ledger.records(since_us=since_us, until_us=until_us):
        if record.key in counted:
            counted[record.key].add(record)
    for record in maestro.ledger.records(since_us=since_us, until_us=until_us):
        # A call's usage stands on one row: the one that settled it, or its late truth.
        if record.kind == "settled" or (record.kind == "corrected" and record.usage):
            _price_again(maestro, quotes, record, counted.get(record.key), found, write=write)
    return found


def _price_again(
    maestro: Maestro,
    quotes: Quotes,
    record: Record,
    counted: _Counted | None,
    found: Repricing,
    *,
    write: bool,
) -> None:
    if counted is None:
        counted = _Counted()
        counted.add(record)
    truth = None if counted.released else quotes.again(record)
    if truth is None:
        found.skipped += 1
        return
    now = (truth.cost_nanos, truth.estimated_nanos, bool(truth.unpriced))
    if now == (counted.cost, counted.estimated, counted.unpriced):
        found.unchanged += 1
        return
    change = found.changes.setdefault((record.provider, record.model), Change())
    change.calls += 1
    change.before += counted.cost
    change.after += truth.cost_nanos
    if write:
        correction = maestro.ledger.correct(record.key, truth)
        observe(maestro.plugins, "maestro_settled", record=correction)
