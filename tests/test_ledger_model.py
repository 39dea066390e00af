"""Ledgers against an exact model: random verbs, clock jumps, late truths and reopened files, in any order."""

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from maestro_core.clock import to_micros
from maestro_core.errors import ReservationClosed
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Held, Hold, Meter, Refused, Settlement

START = datetime(2026, 11, 23, 22, 30, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

METERS = [
    Meter(),
    Meter(("customer",)),
    Meter(("agent",), (), "day"),
    Meter(("customer", "model"), (), "hour"),
    Meter((), (("agent", "boss"),), "day"),
    Meter(("tool",), (("customer", "a"),)),
]
LIMITS = dict(zip(METERS, (400, 150, 200, 120, 180, 100), strict=True))


class Clock:
    now = to_micros(START)

    def now_us(self):
        return self.now


@dataclass
class Call:
    """What the model knows of a call."""

    amount: int
    at: int
    attribution: Attribution
    model: str
    state: str = "held"  # held | presumed | settled | released
    truth: int = 0
    said: int = 0  # when it was settled, before corrections

    @property
    def counted(self):
        return {"held": self.amount, "presumed": self.amount, "settled": self.truth, "released": 0}[
            self.state
        ]


class Model:
    """An independent ledger that keeps calls only and adds them up anew each time it is asked."""

    def __init__(self):
        self.calls = {}
        self.meters = {}  # meter -> from when it counts
        self.now = 0

    def window(self, meter, at):
        when = EPOCH + timedelta(microseconds=at)
        if meter.every == "day":
            return when.replace(hour=0, minute=0, second=0, microsecond=0)
        if meter.every == "hour":
            return when.replace(minute=0, second=0, microsecond=0)
        return None

    def names(self, dimension, call):
        if dimension == "model":
            return {call.model}
        on_path = {name for kind, name in call.attribution.path if kind == dimension}
        return on_path or {call.attribution.dimensions.get(dimension, "(unattributed)")}

    def buckets(self, meter, call):
        if any(value not in self.names(name, call) for name, value in meter.where):
            return set()
        rows = {()}
        for dimension in meter.per:
            rows = {(*row, name) for row in rows for name in self.names(dimension, call)}
        return rows

    def counters(self, meter, window):
        """Return {values: (spent, held, presumed)} of one window."""
        found = defaultdict(lambda: [0, 0, 0])
        for call in self.calls.values():
            if call.at < self.meters[meter] or self.window(meter, call.at) != window:
                continue
            for values in self.buckets(meter, call):
                found[values][("settled", "held", "presumed", "released").index(call.state) % 3] += (
                    call.counted
                )
        return {values: tuple(counter) for values, counter in found.items() if any(counter)}

    def fits(self, call):
        for meter in self.meters:
            counters = self.counters(meter, self.window(meter, call.at))
            for values in self.buckets(meter, call):
                if sum(counters.get(values, (0,))) + call.amount > LIMITS[meter]:
                    return False
        return True


class LedgerMachine(RuleBasedStateMachine):
    """Drives a ledger and the model side by side."""

    keys = Bundle("keys")
    url = "memory:"

    @initialize(meters=st.sets(st.sampled_from(METERS)))
    def open(self, meters):
        self.clock, self.model = Clock(), Model()
        self.model.now = self.clock.now
        self.folder = tempfile.TemporaryDirectory()
        self.url = type(self).url.format(folder=self.folder.name)
        self.ledger = open_ledger(self.url, clock=self.clock)
        for meter in METERS:
            if meter in meters:
                self.declare(meter)

    def teardown(self):
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()

    def tick(self):
        self.model.now = max(self.model.now, self.clock.now)
        return self.model.now

    @rule(meter=st.sampled_from(METERS))
    def declare(self, meter):
        now = self.tick()
        if meter not in self.model.meters:
            window = self.model.window(meter, now)
            self.model.meters[meter] = to_micros(window) if window else 0
        self.ledger.declare([meter])

    @rule(
        target=keys,
        amount=st.integers(0, 90),
        customer=st.sampled_from(["a", "b", None]),
        path=st.lists(
            st.tuples(st.sampled_from(["agent", "tool"]), st.sampled_from(["boss", "x"])), max_size=3
        ),
        model=st.sampled_from(["m", "n"]),
    )
    def reserve(self, amount, customer, path, model):
        now = self.tick()
        key = f"key-{len(self.model.calls)}-{now}-{amount}"
        attribution = Attribution({"customer": customer} if customer else {}, tuple(path))
        call = Call(amount, now, attribution, model)
        limits = tuple((meter, LIMITS[meter]) for meter in self.model.meters)
        hold = Hold(key, amount, "openai", model, attribution, limits)
        if key in self.model.calls:
            return multiple()
        fits = self.model.fits(call)
        outcome = self.ledger.reserve(hold)
        assert isinstance(outcome, Held if fits else Refused)
        assert outcome.at_us == now
        if not fits:
            used = outcome.bucket.used
            assert used + amount > outcome.limit_nanos == LIMITS[outcome.bucket.meter]
            self.ledger.refuse(hold, {"reason": "spent"})
            return multiple()
        self.model.calls[key] = call
        assert self.ledger.reserve(hold) == outcome
        return key

    @rule(key=keys, truth=st.integers(0, 120))
    def settle(self, key, truth):
        self.tick()
        call = self.model.calls[key]
        settlement = Settlement(cost_nanos=truth, usage={"input_tokens": truth})
        if call.state == "released" or (call.state == "settled" and call.said != truth):
            with pytest.raises(ReservationClosed):
                self.ledger.settle(key, settlement)
            return
        kind = {"held": "settled", "presumed": "corrected"}.get(call.state)
        record = self.ledger.settle(key, settlement)
        assert kind in (None, record.kind)
        assert record.overrun == (truth > call.amount)
        assert to_micros(record.at) == call.at
        if kind:
            call.state, call.truth, call.said = "settled", truth, truth

    @rule(key=keys, truth=st.integers(0, 120))
    def correct(self, key, truth):
        self.tick()
        call = self.model.calls[key]
        if call.state != "settled":
            with pytest.raises(ReservationClosed):
                self.ledger.correct(key, Settlement(cost_nanos=truth))
            return
        before = len(list(self.ledger.records()))
        record = self.ledger.correct(key, Settlement(cost_nanos=truth))
        assert to_micros(record.at) == call.at
        assert len(list(self.ledger.records())) - before == (truth != call.truth)
        call.truth = truth

    @rule(key=keys)
    def settle_twice(self, key):
        call = self.model.calls[key]
        if call.state == "settled":
            self.tick()
            settlement = Settlement(cost_nanos=call.said)
            assert self.ledger.settle(key, settlement) == self.ledger.settle(key, settlement)

    @rule(key=keys)
    def release(self, key):
        self.tick()
        call = self.model.calls[key]
        if call.state == "settled":
            with pytest.raises(ReservationClosed):
                self.ledger.release(key, "429")
            return
        record = self.ledger.release(key, "429")
        assert self.ledger.release(key, "again") == record
        call.state = "released"

    @rule(age=st.sampled_from([-1, 0, 600, 7200]))
    def presume(self, age):
        before = self.tick() - age * 1_000_000
        stale = {k for k, c in self.model.calls.items() if c.state == "held" and c.at < before}
        records = self.ledger.presume(older_than_us=before)
        assert {record.key for record in records} == stale
        for key in stale:
            self.model.calls[key].state = "presumed"

    @rule(seconds=st.sampled_from([1, 59, 1800, 5400, 40_000, -1, -3600, -90_000]))
    def jump(self, seconds):
        self.clock.now += seconds * 1_000_000

    @invariant()
    def counters_are_exact(self):
        if not hasattr(self, "ledger"):
            return
        now = self.tick()
        assert self.ledger.now_us() == now  # after each step, so ledger and model have seen the same times
        assert set(self.ledger.meters()) == set(self.model.meters)
        for meter in self.model.meters:
            found = {b.values: (b.spent, b.held, b.presumed) for b in self.ledger.buckets(meter)}
            nonzero = {values: counter for values, counter in found.items() if any(counter)}
            assert nonzero == self.model.counters(meter, self.model.window(meter, now))
        assert self.ledger.check() == []

    @invariant()
    def money_is_conserved(self):
        if not hasattr(self, "ledger"):
            return
        calls = self.model.calls
        assert {(h.key, h.state, h.amount_nanos) for h in self.ledger.holds()} == {
            (key, call.state, call.amount)
            for key, call in calls.items()
            if call.state in ("held", "presumed")
        }
        booked = sum(call.counted for call in calls.values() if call.state in ("settled", "presumed"))
        assert sum(record.cost_nanos for record in self.ledger.records()) == booked
        for by in ((), ("customer",), ("agent",), ("customer", "tool")):
            rows = self.ledger.sums(by)
            assert sum(row.cost_nanos for row in rows) == booked
            assert sum(row.calls for row in rows) == sum(
                call.state in ("settled", "presumed") for call in calls.values()
            )


class SQLiteMachine(LedgerMachine):
    """The same, with the file closed and opened again at any time."""

    url = "sqlite:///{folder}/ledger.db"

    @rule()
    def reopen(self):
        # What no verb has written down, a new process cannot know: that a clock ran ahead of every call.
        self.ledger.close()
        self.ledger = open_ledger(self.url, clock=self.clock)
        self.model.now = max(self.ledger.now_us(), self.clock.now)
        assert self.model.now >= max((call.at for call in self.model.calls.values()), default=0)
        assert Path(self.url.removeprefix("sqlite:///")).exists()


QUICK = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestMemory = LedgerMachine.TestCase
TestMemory.settings = QUICK
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(QUICK, max_examples=20)
