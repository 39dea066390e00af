"""What every ledger decides alike: which buckets a call charges, whether it fits, what counters must say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from maestro_core.caps import charged_values, window
from maestro_core.types import Attribution, Bucket, Hold, Meter, OpenHold, Refused, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "BucketKey",
    "BucketName",
    "Counted",
    "Counter",
    "Difference",
    "Place",
    "Spend",
    "admit",
    "charged",
    "differences",
    "fitted",
    "rebuild",
    "since_us",
]

_FIRST = itemgetter(0)

# Meter id, values, start of the window (0 for a meter without windows).
BucketKey = tuple[str, tuple[str, ...], int]

# A bucket whatever its window.
BucketName = tuple[str, tuple[str, ...]]

# [spent, held, presumed] in nano-dollars. A list, because a ledger in memory updates it in place on its hot path.
Counter = list[int]

_NOTHING: Mapping[BucketName, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Counted:
    """A meter that a ledger counts for, and from when: calls reserved before `since_us` are not in it."""

    meter: Meter
    since_us: int


class Place(NamedTuple):
    """Where money is counted: one value of a meter in one window; `key` is its identity."""

    meter: Meter
    values: tuple[str, ...]
    window: Window | None
    key: BucketKey

    def bucket(self, counter: Sequence[int]) -> Bucket:
        """Return the bucket as users see it."""
        spent, held, presumed = counter
        return Bucket(self.meter, self.values, self.window, spent, held, presumed)


class Difference(NamedTuple):
    """A counter that is not what journal and holds say."""

    key: BucketKey
    right: tuple[int, ...]
    wrong: tuple[int, ...]

    def lines(self) -> list[str]:
        """Return one line for each amount that differs."""
        meter, values, start_us = self.key
        amounts = zip(("spent", "held", "presumed"), self.right, self.wrong, strict=True)
        return [
            f"{meter} {list(values)} from {start_us}: {name} is {wrong} nano-dollars, journal and holds say {right}"
            for name, right, wrong in amounts
            if right != wrong
        ]


@dataclass(frozen=True, slots=True)
class Spend:
    """What journal rows of one attribution add up to, all reserved within one quarter of an hour."""

    attribution: Attribution
    provider: str
    model: str
    at_us: int
    cost_nanos: int


def since_us(meter: Meter, now_us: int) -> int:
    """Return from when a meter declared now counts: the start of its current window, or always."""
    current = window(meter.every, meter.time_zone, now_us)
    return current.start_us if current else 0


def charged(
    counted: Iterable[Counted], attribution: Attribution, provider: str, model: str, at_us: int
) -> list[Place]:
    """Return every place that a call reserved at `at_us` is counted at."""
    places = []
    for one in counted:
        if one.since_us > at_us:
            continue
        meter, name = one.meter, one.meter.id
        current = window(meter.every, meter.time_zone, at_us) if meter.every else None
        start_us = current.start_us if current else 0
        for values in charged_values(meter, attribution, provider, model):
            place = meter, values, current, (name, values, start_us)
            places.append(tuple.__new__(Place, place))  # its own constructor is in Python, and slow
    return places


def admit(
    hold: Hold,
    places: Iterable[tuple[Place, Sequence[int]]],
    at_us: int,
    promised: Mapping[BucketName, int] = _NOTHING,
) -> int | Refused:
    """Return how much to hold for a call, or the bucket that refuses it.

    That is one whose money is spent, if there is one, so that nobody waits for another in vain. Of several, it is the
    one that lacks the most room.

    Args:
        hold: What is asked for.
        places: Where the call is counted, with the counters as they stand.
        at_us: The store's time.
        promised: What belongs to callers that have waited longer, of the money that is free.
    """
    limits: dict[str, int] = {}
    for meter, limit in hold.limits:
        name = meter.id
        if name not in limits or limit < limits[name]:
            limits[name] = limit
    enforced = []  # (what is free, limit, place, counter)
    for place, counter in places:
        most = limits.get(place.key[0])
        if most is not None:
            aside = promised.get(place.key[:2], 0) if promised else 0
            enforced.append((most - sum(counter) - aside, most, place, counter))
    if not enforced:
        return hold.amount_nanos
    free, most, place, counter = min(enforced, key=_FIRST)
    aside = most - sum(counter) - free
    amount = _fitted(hold, free, others_hold=counter[1] + aside > 0)
    if amount is not None:
        return amount
    unspent = [(most - total[0] - total[2], most, where, total) for _, most, where, total in enforced]
    least = min(unspent, key=_FIRST)
    if least[0] < hold.needed_nanos:
        _, most, place, counter = least
    aside = promised.get(place.key[:2], 0)
    return Refused(place.bucket(counter), most, hold.needed_nanos, at_us, aside)


def _fitted(hold: Hold, free: int, *, others_hold: bool) -> int | None:
    """Return the amount that suits what is free, or None if the call has to wait or be refused.

    The rule was chosen by simulation against holding the ceiling always, half of it, or refusing: it spends nearly
    the whole cap on complete answers, and leaves a request's own limit alone while eight ceilings are free.
    """
    fit = hold.fit
    if fit is None:
        return hold.amount_nanos if hold.amount_nanos <= free else None
    eighth = (free - fit.fixed_nanos) // 8
    wanted = fit.fixed_nanos + min(fit.ceiling_nanos, max(fit.comfort_nanos, eighth))
    if wanted <= free:
        return wanted
    if hold.needed_nanos <= free and (fit.rest or not others_hold):
        return min(free, fit.fixed_nanos + fit.ceiling_nanos)
    return None


def fitted(hold: Hold, amount_nanos: int) -> Hold:
    """Return a hold with the amount that was admitted."""
    return hold if hold.amount_nanos == amount_nanos else replace(hold, amount_nanos=amount_nanos)


def rebuild(
    counted: Sequence[Counted], spends: Iterable[Spend], holds: Iterable[OpenHold]
) -> dict[BucketKey, tuple[Place, Counter]]:
    """Return what every counter must say, from the journal and the holds alone.

    A presumed hold has its journal row already, so it moves from spent to presumed and is not counted again.
    """
    rebuilt: dict[BucketKey, tuple[Place, Counter]] = {}

    def add(of: Spend | OpenHold, spent: int, held: int, presumed: int) -> None:
        for place in charged(counted, of.attribution, of.provider, of.model, of.at_us):
            counter = rebuilt.setdefault(place.key, (place, [0, 0, 0]))[1]
            counter[0] += spent
            counter[1] += held
            counter[2] += presumed

    for spend in spends:
        add(spend, spend.cost_nanos, 0, 0)
    for hold in holds:
        if hold.state == "held":
            add(hold, 0, hold.amount_nanos, 0)
        else:
            add(hold, -hold.amount_nanos, 0, hold.amount_nanos)
    return rebuilt


def differences(
    expected: Mapping[BucketKey, Sequence[int]], actual: Mapping[BucketKey, Sequence[int]]
) -> list[Difference]:
    """Return each counter that differs; a bucket that is missing counts as zero."""
    zero = (0, 0, 0)
    pairs = [
        Difference(key, tuple(expected.get(key, zero)), tuple(actual.get(key, zero)))
        for key in sorted(expected.keys() | actual.keys())
    ]
    return [pair for pair in pairs if pair.right != pair.wrong]
