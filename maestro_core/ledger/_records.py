"""The rows that each verb adds to the journal. Amounts are what a row adds, so that sums over rows are right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maestro_core.clock import from_micros
from maestro_core.errors import ReservationClosed
from maestro_core.types import Attribution, Hold, OpenHold, Record, Settlement, new_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maestro_core.types import Kind

__all__ = [
    "corrected",
    "granted",
    "inherited",
    "note",
    "numbers",
    "presumed",
    "refused",
    "released",
    "repeated_release",
    "repeated_settle",
    "settled",
]

# In the detail of a correction: whether the call had been counted as unpriced, which the row then takes back.
_WAS_UNPRICED = "was_unpriced"


def settled(hold: OpenHold, truth: Settlement, *, seq: int, now_us: int) -> Record:
    """Return the row that settles a hold, or that corrects one which was presumed spent."""
    late = hold.state == "presumed"
    counted = hold.amount_nanos if late else 0
    detail = dict(truth.detail)
    if truth.model and truth.model != hold.model:
        # The record keeps the model asked for, because that is what the buckets were charged by.
        detail["served_model"] = truth.model
    return Record(
        seq=seq,
        kind="corrected" if late else "settled",
        key=hold.key,
        at=from_micros(hold.at_us),
        written_at=from_micros(now_us),
        provider=hold.provider,
        model=hold.model,
        attribution=hold.attribution,
        cost_nanos=truth.cost_nanos - counted,
        held_nanos=hold.amount_nanos,
        estimated_nanos=truth.estimated_nanos - counted,
        sheet_nanos=truth.sheet_nanos,
        calls=0 if late else 1,
        usage=dict(truth.usage),
        price_id=truth.price_id,
        price_book=truth.price_book,
        unpriced=truth.unpriced,
        overrun=truth.cost_nanos > hold.amount_nanos,
        detail=detail,
    )


def corrected(key: str, rows: Sequence[Record], truth: Settlement, *, seq: int, now_us: int) -> Record:
    """Return the row that brings a settled call to another cost, or its last row if that says the same already.

    Args:
        key: The call's identity.
        rows: All that the journal says of it, in order.
        truth: What the call came to, in whole; the row has the difference. Its usage is not counted again.
        seq: The new row's number.
        now_us: The store's time.

    Raises:
        ReservationClosed: If the call was not settled, or was released.
    """
    kinds = {row.kind for row in rows}
    if not kinds & {"settled", "corrected"} or "released" in kinds:
        raise ReservationClosed(f"reservation {key} was not settled, so its cost cannot be corrected")
    cost, _, _, _, estimated, unpriced = (sum(column) for column in zip(*map(numbers, rows), strict=True))
    known = (truth.cost_nanos, truth.estimated_nanos, int(bool(truth.unpriced)))
    if known == (cost, estimated, unpriced):
        return rows[-1]
    last = rows[-1]
    return Record(
        seq=seq,
        kind="corrected",
        key=key,
        at=last.at,
        written_at=from_micros(now_us),
        provider=last.provider,
        model=last.model,
        attribution=last.attribution,
        cost_nanos=truth.cost_nanos - cost,
        held_nanos=last.held_nanos,
        estimated_nanos=truth.estimated_nanos - estimated,
        sheet_nanos=truth.sheet_nanos,
        price_id=truth.price_id,
        price_book=truth.price_book,
        unpriced=truth.unpriced,
        overrun=truth.cost_nanos > last.held_nanos,
        detail={**truth.detail, _WAS_UNPRICED: bool(unpriced)},
    )


def released(hold: OpenHold, reason: str, *, seq: int, now_us: int) -> Record:
    """Return the row that gives a hold back; if it was presumed spent, the row takes that back, call included."""
    counted = hold.amount_nanos if hold.state == "presumed" else 0
    return _row_of(
        hold, "released", seq, hold.at_us, now_us,
        cost_nanos=-counted, held_nanos=hold.amount_nanos, estimated_nanos=-counted,
        calls=-1 if hold.state == "presumed" else 0, detail={"reason": reason},
    )  # fmt: skip


def presumed(hold: OpenHold, *, seq: int, now_us: int) -> Record:
    """Return the row that counts a hold as spent because its end was not seen; unpriced if nothing was held."""
    amount = hold.amount_nanos
    return _row_of(
        hold, "presumed", seq, hold.at_us, now_us,
        cost_nanos=amount, held_nanos=amount, estimated_nanos=amount, calls=1, unpriced=() if amount else ("*",),
    )  # fmt: skip


def refused(hold: Hold, detail: Mapping[str, Any], *, seq: int, now_us: int) -> Record:
    """Return the row of a call that was not admitted; what it would have needed is in the detail."""
    return _row_of(hold, "refused", seq, now_us, now_us, detail={"needed_nanos": hold.amount_nanos, **detail})


def _row_of(hold: Hold | OpenHold, kind: Kind, seq: int, at_us: int, now_us: int, **rest: Any) -> Record:
    return Record(
        seq=seq, kind=kind, key=hold.key, at=from_micros(at_us), written_at=from_micros(now_us),
        provider=hold.provider, model=hold.model, attribution=hold.attribution, **rest,
    )  # fmt: skip


def granted(key: str, run: str, detail: Mapping[str, Any], *, seq: int, now_us: int) -> Record:
    """Return the row of a run that a person let go on."""
    asked = Hold(key, 0, "", "", Attribution({"run": run}))
    return _row_of(asked, "granted", seq, now_us, now_us, detail=detail)


def note(kind: Kind, detail: Mapping[str, Any], *, seq: int, now_us: int) -> Record:
    """Return a row about the ledger itself, which moves no money."""
    return _row_of(Hold(new_key(), 0, "", "", Attribution()), kind, seq, now_us, now_us, detail=detail)


def numbers(record: Record) -> tuple[int, int, int, int, int, int]:
    """Return what a row adds to a report, in the order of `Sum`: cost, calls, input, output, estimated, unpriced."""
    unpriced = int(bool(record.unpriced))
    counted = record.detail.get(_WAS_UNPRICED)
    undoes_presumed = record.kind == "corrected" or record.calls < 0
    if counted is not None:
        unpriced -= counted  # a later correction says what it found
    elif undoes_presumed and not record.held_nanos:
        unpriced -= 1  # the presumed row of a hold of nothing counted the call as unpriced
    return (
        record.cost_nanos,
        record.calls,
        record.usage.get("input_tokens", 0),
        record.usage.get("output_tokens", 0),
        record.estimated_nanos,
        unpriced,
    )


def inherited(hold: OpenHold) -> ReservationClosed:
    """Return the error for a hold of the process that the asking one was forked from: only one may end a call."""
    pid = hold.owner.partition("-")[0]
    return ReservationClosed(
        f"reservation {hold.key} belongs to process {pid}, which this one was forked from; leave it to that one"
    )


def repeated_settle(key: str, closing: Record | None, truth: Settlement) -> Record:
    """Return the row that already settled this key at the same cost.

    Raises:
        ReservationClosed: If there is none, it released the hold, or the cost was another.
    """
    if closing is None:
        raise ReservationClosed(f"reservation {key} is unknown to this ledger; reserve before you settle")
    if closing.kind == "released":
        raise ReservationClosed(f"reservation {key} was released; it cannot be settled")
    cost = closing.cost_nanos + (closing.held_nanos if closing.kind == "corrected" else 0)
    if cost != truth.cost_nanos:
        raise ReservationClosed(
            f"reservation {key} was settled at {cost} nano-dollars, not at {truth.cost_nanos}"
        )
    return closing


def repeated_release(key: str, closing: Record | None) -> Record:
    """Return the row that already released this key.

    Raises:
        ReservationClosed: If there is none, or it settled the hold.
    """
    if closing is None:
        raise ReservationClosed(f"reservation {key} is unknown to this ledger; reserve before you release")
    if closing.kind != "released":
        raise ReservationClosed(f"reservation {key} was settled; it cannot be released")
    return closing
