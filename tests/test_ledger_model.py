"""Ledgers against an exact model: random verbs, clock jumps, late truths, in any order.

In a file also: several connections, closed and opened again; meters filled in small steps, buckets of runs that come and go,
counters damaged and reconciled, old rows archived.
"""

import tempfile
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clocks import Clock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from maestro_core.clock import to_micros
from maestro_core.errors import ReservationClosed
from maestro_core.ledger import _archive, _filling, open_ledger
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
    Meter(("run",)),
    Meter(("model", "run")),
]
LIMITS = dict(zip(METERS, (400, 150, 200, 120, 180, 100, 130, 110), strict=True))
KEPT_US = 7 * 86_400_000_000  # how long buckets of runs are kept at least
HOUR_US = 3_600_000_000


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
    archived: bool = False

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
    deleted = False  # whether somebody deleted counters: those of runs come back when they are needed

    @initialize(meters=st.sets(st.sampled_from(METERS)))
    def open(self, meters):
        self.clock, self.model = Clock(to_micros(START)), Model()
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
        run=st.sampled_from(["r", "s", None]),
        path=st.lists(
            st.tuples(st.sampled_from(["agent", "tool"]), st.sampled_from(["boss", "x"])), max_size=3
        ),
        model=st.sampled_from(["m", "n"]),
    )
    def reserve(self, amount, customer, run, path, model):
        now = self.tick()
        key = f"key-{len(self.model.calls)}-{now}-{amount}"
        dimensions = {name: value for name, value in (("customer", customer), ("run", run)) if value}
        attribution = Attribution(dimensions, tuple(path))
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
        if call.archived or call.state == "released" or (call.state == "settled" and call.said != truth):
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
        if call.state != "settled" or call.archived:
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
        if call.state == "settled" and not call.archived:
            self.tick()
            settlement = Settlement(cost_nanos=call.said)
            assert self.ledger.settle(key, settlement) == self.ledger.settle(key, settlement)

    @rule(key=keys)
    def release(self, key):
        self.tick()
        call = self.model.calls[key]
        if call.state == "settled" or call.archived:
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

    @rule(seconds=st.sampled_from([1, 59, 1800, 5400, 40_000, -1, -3600, -90_000, 9 * 86_400, 40 * 86_400]))
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
            expected = self.model.counters(meter, self.model.window(meter, now))
            dropped = expected.keys() - nonzero.keys()
            assert not dropped or self.may_drop(meter, dropped, now)
            assert nonzero == {
                values: counter for values, counter in expected.items() if values not in dropped
            }
        assert self.ledger.check() == []

    def may_drop(self, meter, dropped, now):
        """Return whether these buckets may be away: runs that called last some days ago, or a person deleted them."""
        if "run" not in meter.per:
            return False
        runs = {values[meter.per.index("run")] for values in dropped}
        open_ = {h.attribution.value("run") for h in self.ledger.holds()}
        if "(unattributed)" in runs or runs & open_:
            return False
        last = {
            run: max(c.at for c in self.model.calls.values() if c.attribution.value("run") == run)
            for run in runs
        }
        return self.deleted or all(at < now - KEPT_US for at in last.values())

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
        spent = [call for call in calls.values() if call.state in ("settled", "presumed")]
        booked = sum(call.counted for call in spent)
        journal = sum(call.counted for call in spent if not call.archived)
        assert sum(record.cost_nanos for record in self.ledger.records()) == journal
        for by in ((), ("customer",), ("agent",), ("customer", "tool"), ("run",)):
            rows = self.ledger.sums(by)
            assert sum(row.cost_nanos for row in rows) == booked
            assert sum(row.calls for row in rows) == sum(
                call.state in ("settled", "presumed") for call in calls.values()
            )


class SQLiteMachine(LedgerMachine):
    """The same in a file, through two connections; each is as another process."""

    url = "sqlite:///{folder}/ledger.db"

    @initialize()
    def steps(self):
        self.patch = pytest.MonkeyPatch()
        for name in ("_AT_ONCE", "_BUCKETS", "_RUNS"):
            self.patch.setattr(_filling, name, 2)
        self.patch.setattr(_archive, "_STEP", 2)
        self.others = []

    def teardown(self):
        for other in getattr(self, "others", ()):
            other.close()
        if hasattr(self, "patch"):
            self.patch.undo()
        super().teardown()

    def use(self, ledger):
        # What no verb has written down, another process cannot know: that a clock ran ahead of every call.
        self.ledger = ledger
        self.model.now = max(ledger.now_us(), self.clock.now)
        assert self.model.now >= max((call.at for call in self.model.calls.values()), default=0)

    @rule()
    def reopen(self):
        self.ledger.close()
        self.use(open_ledger(self.url, clock=self.clock))
        assert Path(self.url.removeprefix("sqlite:///")).exists()

    @rule()
    def another(self):
        """Go on through another connection; the one in use stays open."""
        self.others.append(self.ledger)
        other = self.others.pop(0) if len(self.others) > 1 else open_ledger(self.url, clock=self.clock)
        self.use(other)

    @rule(
        table=st.sampled_from(["buckets", "hourly_spend", "rows"]),
        amount=st.sampled_from([-7, 1, 1000]),
        at_open=st.booleans(),
    )
    def damage(self, table, amount, at_open):
        """Make counters wrong; they are put right by a person, or (the journal is short) when the file is opened."""
        statement = {
            "buckets": "UPDATE buckets SET spent_nanos = spent_nanos + ?",
            "hourly_spend": "UPDATE hourly_spend SET cost_nanos = cost_nanos + ?"
            " WHERE hour_us >= (SELECT coalesce(max(before_us), 0) FROM archives)",
            "rows": "DELETE FROM buckets WHERE ?",
        }[table]
        self.deleted |= table == "rows"
        with self.ledger._database.writing as connection:
            connection.execute(statement, (amount,))
        if at_open:
            self.reopen()
        else:
            self.ledger.reconcile()

    @rule(days=st.sampled_from([0, 20, 40]))
    def archive(self, days):
        self.clock.now += days * 24 * HOUR_US
        before = self.tick() - 33 * 24 * HOUR_US
        before -= before % HOUR_US
        old = [call for call in self.model.calls.values() if call.at < before]
        file = Path(self.folder.name, "archive.db")
        if any(call.state == "held" for call in old):
            with pytest.raises(ValueError, match="are still open"):
                self.ledger.archive(before, file)
            return
        self.ledger.archive(before, file)
        for call in old:
            call.archived = call.state in ("settled", "released")
        with closing(open_ledger(f"sqlite:///{file}", clock=self.clock)) as archive:
            assert archive.check() == []
            booked = sum(call.counted for call in old if call.archived)
            assert sum(row.cost_nanos for row in archive.sums(())) == booked


QUICK = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestMemory = LedgerMachine.TestCase
TestMemory.settings = QUICK
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = settings(QUICK, max_examples=25)
