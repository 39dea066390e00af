"""Why a call is refused: one line that says everything, with every number as an attribute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .clock import from_micros
from .errors import CapExceeded
from .money import format_usd, to_usd
from .types import Cap

if TYPE_CHECKING:
    from .errors import Reason
    from .types import Attribution, Bucket, Call, Cost, Refused

__all__ = ["above_ceiling", "cut", "from_ledger", "halted", "latched", "too_small"]

# Across processes nobody sees this; within one, `waiting` does, and such calls do not wait.
_NESTED = (
    "; it is made inside an open call: if one of another process waits for that one's money in the same way, neither"
    " can go on; end the outer call first, or give it a smaller max_tokens"
)


def from_ledger(
    refused: Refused, cap: Cap, call: Call, *, limit_nanos: int, inside: bool = False
) -> CapExceeded:
    """Return the error for a ledger's refusal: `spent` if the money is gone, `held` if other calls only hold it.

    `limit_nanos` is the cap's limit with what was granted to the run; the ledger was asked with less, where something
    is kept for a last answer. A call that was made inside an open one is told that it may have waited in vain.
    """
    bucket, needed = refused.bucket, refused.needed_nanos
    reason: Reason = "spent" if refused.spent else "held"
    presumed = f" + presumed {format_usd(bucket.presumed)}" if bucket.presumed else ""
    held = f" + held {format_usd(bucket.held)}" if bucket.held else ""
    kept = limit_nanos - refused.limit_nanos
    last = f" + {format_usd(kept)} kept for a last answer" if kept else ""
    older = refused.promised_nanos
    promised = f" + {format_usd(older)} for calls that wait already" if older and not refused.spent else ""
    nested = _NESTED if inside and reason == "held" else ""
    return _error(
        f"cap exceeded ({reason}): {bucket.label}: spent {format_usd(bucket.spent)}{presumed}{held}{promised}"
        f" + this call up to {format_usd(needed)}{last} > {format_usd(limit_nanos)}{_resets(bucket)}{nested}",
        reason, cap, bucket, call, needed,
    )  # fmt: skip


def latched(first: CapExceeded, call: Call) -> CapExceeded:
    """Return the refusal of a later call of a run that was told before that this bucket's money is spent."""
    numbers = {**first.__dict__, "reason": "latched", "attribution": call.attribution}
    return CapExceeded(str(first).replace("(spent)", "(latched)", 1), **numbers)


def halted(why: str, run: str, where: Attribution, *, spent_nanos: int) -> CapExceeded:
    """Return the error for the further calls of a run that goes round in circles: as if a cap had been all it spent."""
    spent = to_usd(spent_nanos)
    return CapExceeded(
        f'halted (loop): {why}; {format_usd(spent_nanos)} spent; maestro.resume("{run}") lets it go on',
        reason="latched",
        cap=Cap(spent, per="run"),
        bucket=f"run={run}",
        spent=spent,
        held=to_usd(0),
        presumed=to_usd(0),
        needed=to_usd(0),
        headroom=to_usd(0),
        resets_at=None,
        attribution=where,
    )


def cut(cap: Cap, bucket: Bucket, call: Call, tokens: int, partial: str) -> CapExceeded:
    """Return the error for an answer that ended at the output limit that was all the cap could buy."""
    error = _error(
        f"cap exceeded (spent): {bucket.label}: spent {format_usd(bucket.spent)} of {format_usd(cap.limit_nanos)}; "
        f"the last answer was cut at {tokens:,} tokens, all that was left for it{_resets(bucket)}",
        "spent", cap, bucket, call, 0,
    )  # fmt: skip
    error.__dict__["partial"] = partial
    return error


def too_small(cap: Cap, bucket: Bucket, call: Call, needed: int, kept: int) -> CapExceeded:
    """Return the error for a call whose least possible cost, with the shortest answer, is above the limit."""
    last = f" and {format_usd(kept)} kept for a last answer" if kept else ""
    return _error(
        f"cap exceeded (ceiling): {call.name or call.model} with its shortest answer may cost {format_usd(needed)}{last}; "
        f"cap {bucket.label} {format_usd(cap.limit_nanos)}. Send less, or raise the cap",
        "ceiling", cap, bucket, call, needed,
    )  # fmt: skip


def above_ceiling(cap: Cap, bucket: Bucket, call: Call, bound: Cost, ceiling: int | None) -> CapExceeded:
    """Return the error for a call whose worst case alone is above the limit; it names the output limit that fits."""
    name = call.name or call.model
    limit = format_usd(cap.limit_nanos)
    if ceiling and call.max_output_tokens is None:
        why = f"{name} sets no output limit (the model may answer up to {ceiling:,} tokens), so one call may cost"
    else:
        why = f"{name} may cost"
    return _error(
        f"cap exceeded (ceiling): {why} {format_usd(bound.nanos)}; cap {bucket.label} {limit}. {_fix(cap, call, bound, ceiling)}",
        "ceiling", cap, bucket, call, bound.nanos,
    )  # fmt: skip


def _fix(cap: Cap, call: Call, bound: Cost, ceiling: int | None) -> str:
    output = sum(line.picos for line in bound.lines if line.kind.startswith("output")) // 1000
    room = cap.limit_nanos - (bound.nanos - output)
    retries = f", or max_retries=0: the client may send it {call.attempts} times" if call.attempts > 1 else ""
    if not ceiling or not output or room <= 0:
        return f"Its input alone does not fit: send less, or raise the cap{retries}"
    fits = int(ceiling * room // output)
    # Two significant digits less: a number that people can read, and still below the limit.
    step = 10 ** max(0, len(str(fits)) - 2)
    return f"Set max_tokens={fits // step * step} or less{retries}" if fits else f"Raise the cap{retries}"


def _resets(bucket: Bucket) -> str:
    return f"; resets {from_micros(bucket.window.end_us):%Y-%m-%d %H:%M} UTC" if bucket.window else ""


def _error(message: str, reason: Reason, cap: Cap, bucket: Bucket, call: Call, needed: int) -> CapExceeded:  # noqa: PLR0917 - private
    return CapExceeded(
        message,
        reason=reason,
        cap=cap,
        bucket=bucket.label,
        spent=to_usd(bucket.spent),
        held=to_usd(bucket.held),
        presumed=to_usd(bucket.presumed),
        needed=to_usd(needed),
        headroom=to_usd(max(0, cap.limit_nanos - bucket.used)),
        resets_at=from_micros(bucket.window.end_us) if bucket.window else None,
        attribution=call.attribution,
    )
