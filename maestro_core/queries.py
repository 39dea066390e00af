"""Questions to a ledger: where caps stand, who spent what, and how one run went."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from .caps import window
from .clock import from_micros, to_micros
from .forecasts import forecast
from .money import to_nanos, to_usd
from .types import Cap, CapStatus, Report, ReportRow, Tree, check_dimension

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .types import Budget, Ledger, Meter, Record

__all__ = ["Since", "cap_status", "parse_time", "report", "tree"]

Since = str | datetime
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MOST_DAYS = 36_500


def cap_status(ledger: Ledger, caps: Sequence[Cap | Budget], time_zone: str) -> list[CapStatus]:
    """Return every bucket of every cap (or budget) that counts something now, the one nearest to its limit first."""
    found = []
    now_us = ledger.now_us()
    enforced: dict[Meter, set[int]] = getattr(
        ledger, "limits", dict
    )()  # a ledger of one process has no others
    for cap in caps:
        meter = cap.meter(time_zone)
        others: set[int] = set()
        if isinstance(cap, Cap):
            others = enforced.get(meter, set()) - {
                each.limit_nanos for each in caps if each.meter(time_zone) == meter
            }
        for bucket in ledger.buckets(meter):
            coming = forecast(bucket.spent + bucket.presumed, cap.limit_nanos, bucket.window, now_us)
            reached_us = coming.reached_us if coming else None
            status = CapStatus(
                cap=cap,
                bucket=bucket.label,
                limit=cap.limit,
                spent=to_usd(bucket.spent),
                held=to_usd(bucket.held),
                presumed=to_usd(bucket.presumed),
                headroom=to_usd(cap.limit_nanos - bucket.used),
                resets_at=from_micros(bucket.window.end_us) if bucket.window else None,
                other_limits=tuple(to_usd(limit) for limit in sorted(others)),
                projected=to_usd(coming.projected_nanos) if coming else None,
                reached_at=from_micros(reached_us) if reached_us else None,
            )
            found.append((cap.limit_nanos - bucket.used, status))
    # Ordering is all that this quotient is for.
    found.sort(key=lambda pair: (pair[0] / (pair[1].cap.limit_nanos or 1), pair[1].bucket))
    return [status for _, status in found]


def report(
    ledger: Ledger,
    by: str | Sequence[str],
    *,
    since: Since,
    until: Since | None,
    where: Mapping[str, str] | None,
    time_zone: str,
) -> Report:
    """Return who spent what in a period.

    Raises:
        ValueError: For a `since` or `until` that names no instant, an `until` before `since`, or a `by` that is no
            dimension.
    """
    dimensions = (by,) if isinstance(by, str) else tuple(by)
    for name in dimensions:
        check_dimension(name)
    now_us = ledger.now_us()
    since_us = parse_time(since, now_us, time_zone, name="since")
    until_us = None if until is None else parse_time(until, now_us, time_zone, name="until")
    if until_us is not None and until_us < since_us:
        raise ValueError(f"until={until!s} is before since={since!s}; nothing lies between them")
    sums = ledger.sums(dimensions, since_us=since_us, until_us=until_us, where=where)
    rows = [
        ReportRow(
            key=dict(zip(dimensions, s.values, strict=True)),
            cost=to_usd(s.cost_nanos),
            calls=s.calls,
            input_tokens=s.input_tokens,
            output_tokens=s.output_tokens,
            estimated=to_usd(s.estimated_nanos),
            unpriced_calls=s.unpriced_calls,
        )
        for s in sorted(sums, key=lambda s: (-s.cost_nanos, s.values))
    ]
    return Report(
        by=dimensions,
        since=from_micros(since_us) if since_us else None,
        until=from_micros(now_us if until_us is None else until_us),
        total=to_usd(sum(s.cost_nanos for s in sums)),
        rows=tuple(rows),
    )


def parse_time(value: Since, now_us: int, time_zone: str, *, name: str) -> int:
    """Return a point in time as microseconds.

    Args:
        value: `"24h"`, `"7d"`, `"30m"`, `"2w"` ago; `"hour"`, `"day"`, `"week"`, `"month"` to date; `"all"`; an ISO time
            with a zone, or an aware datetime.
        now_us: The ledger's time.
        time_zone: Where hours, days and months begin.
        name: What to call the value in an error.
    """
    hint = '; use "24h", "7d", "hour", "day", "week", "month", "all" or a time with a zone, as 2026-11-23T00:00:00Z'
    if isinstance(value, str):
        if value == "all":
            return 0
        if value in ("hour", "day", "week", "month"):
            return _start_of(value, now_us, time_zone)
        if match := re.fullmatch(r"(\d{1,6})([mhdw])", value):
            ago = timedelta(**{_UNITS[match[2]]: int(match[1])})
            return max(0, now_us - min(ago, timedelta(days=_MOST_DAYS)) // timedelta(microseconds=1))
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name}={value!r} names no time{hint}") from None
    if not isinstance(value, datetime):
        raise ValueError(f"{name}={value!r} is no time{hint}")  # noqa: TRY004 - as for any other value that is wrong
    if value.tzinfo is None:
        raise ValueError(f"{name}={value.isoformat()!r} has no time zone{hint}")
    return to_micros(value.astimezone(UTC))


def _start_of(every: str, now_us: int, time_zone: str) -> int:
    found = window(every, ZoneInfo(time_zone).key, now_us)  # type: ignore[arg-type]
    return found.start_us if found else 0


@dataclass(slots=True)
class _Node:
    kind: str
    name: str
    nanos: int = 0
    calls: int = 0
    refusals: list[str] = field(default_factory=list)
    children: dict[tuple[str, str], _Node] = field(default_factory=dict)

    def child(self, kind: str, name: str) -> _Node:
        return self.children.setdefault((kind, name), _Node(kind, name))

    def freeze(self) -> Tree:
        """Return the node as a `Tree`; a parent's own cost is that of its models, which stand below it as leaves."""
        children = tuple(child.freeze() for child in self.children.values())
        own = self.nanos + sum(child.nanos for child in self.children.values() if child.kind == "model")
        total = to_usd(self.nanos + sum(to_nanos(child.total) for child in children))
        calls = self.calls + sum(child.calls for child in children)
        return Tree(self.kind, self.name, to_usd(own), total, calls, tuple(self.refusals), children)


def tree(run_id: str, records: Iterable[Record]) -> Tree:
    """Return a run as its agents, tools and models, in the order in which they first called.

    Raises:
        LookupError: If the ledger has no call of that run.
    """
    root = _Node("run", run_id)
    empty = True
    for record in records:
        empty = False
        if record.kind == "granted":
            continue
        node = root
        for kind, name in record.attribution.path:
            node = node.child(kind, name)
        if record.kind == "refused":
            node.refusals.append(str(record.detail.get("why", "")))
            continue
        leaf = node.child("model", f"{record.model} @{record.provider}")
        leaf.nanos += record.cost_nanos
        leaf.calls += record.calls
    if empty:
        raise LookupError(
            f"the ledger has no call of run {run_id!r}; `maestro report --by run` lists the runs"
        )
    return root.freeze()
