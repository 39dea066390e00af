"""A whole Maestro against a model: reserve, fit, settle, top up, latch, resume, change a cap, and all of it twice.

The provider's arithmetic is done here again, in integers; every counter of every bucket must say the same.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sound import usd

from maestro_core import Cap, CapExceeded, Maestro, Usage
from maestro_core.errors import ReservationClosed
from maestro_core.types import Attribution, Call, Hold, Reservation, new_key

# gpt-4o-mini, nano-dollars per token.
INPUT_NANOS, OUTPUT_NANOS = 150, 600
EVERYTHING, CUSTOMER, RUN = "everything", "customer", "run"
LIMITS = {EVERYTHING: 6_000_000, CUSTOMER: 3_000_000, RUN: 1_500_000}


SHAPES = {
    "customer": st.sampled_from(["a", "b"]),
    "run": st.sampled_from(["r1", "r2", "r3"]),
    "tokens": st.sampled_from([20, 100, 400, 1_500, 4_000]),
    "size": st.sampled_from([0, 400, 2_000]),
}


@dataclass
class Held:
    """What the model knows of a reservation."""

    reservation: Reservation
    state: str = "held"  # held | presumed | settled | released
    truth: int = 0
    usage: Usage | None = None

    @property
    def counted(self):
        """Return (spent, held, presumed)."""
        amount = self.reservation.held_nanos
        return {
            "held": (0, amount, 0), "presumed": (0, 0, amount), "settled": (self.truth, 0, 0), "released": (0, 0, 0)
        }[self.state]  # fmt: skip

    def charges(self, bucket):
        return bucket in buckets_of(self.reservation.call)


def buckets_of(call):
    where = call.attribution.dimensions
    return {EVERYTHING, f"customer={where['customer']}", f"run={where['run']}"}


class DoorMachine(RuleBasedStateMachine):
    """Random callers of one process; nobody waits, so each answer is decided by the state alone."""

    keys = Bundle("keys")
    url = "memory:"

    @initialize()
    def open(self):
        self.folder = tempfile.TemporaryDirectory()
        self.limits = dict(LIMITS)
        self.granted = {}  # run -> nanos
        self.latched = set()  # (run, bucket)
        self.known = {}  # key -> Held
        self.maestro = self.start()

    def start(self):
        caps = [
            Cap(usd(self.limits[EVERYTHING])),
            Cap(usd(self.limits[CUSTOMER]), per="customer"),
            Cap(usd(self.limits[RUN]), per="run"),
        ]
        url = self.url.format(folder=self.folder.name)
        return Maestro(ledger=url, caps=caps, wait_s=0, min_output_tokens=50)

    def teardown(self):
        if hasattr(self, "maestro"):
            self.maestro.close()
            self.folder.cleanup()

    # -- the model ----------------------------------------------------------------------------------------------------

    def limit(self, bucket):
        limit = self.limits[bucket.partition("=")[0]]
        return (
            limit + self.granted.get(bucket.removeprefix("run="), 0) if bucket.startswith("run=") else limit
        )

    def counters(self, bucket):
        rows = [one.counted for one in self.known.values() if one.charges(bucket)]
        return tuple(map(sum, zip(*rows, strict=True))) if rows else (0, 0, 0)

    def call(self, customer, run, tokens, size):
        where = Attribution({"customer": customer, "run": run})
        return Call(
            provider="openai",
            model="gpt-4o-mini",
            input="x" * size,
            max_output_tokens=tokens,
            attribution=where,
        )

    def admitted(self, reservation):
        """A call was let go: its buckets have room for it, and it is known from now on."""
        call = reservation.call
        assert not any(
            (call.attribution.dimensions["run"], bucket) in self.latched for bucket in buckets_of(call)
        )
        self.known[reservation.key] = Held(reservation)
        for bucket in buckets_of(call):
            assert sum(self.counters(bucket)) <= self.limit(bucket)
        fitted = reservation.fitted_output_tokens
        assert fitted is None or 50 <= fitted < call.max_output_tokens
        limit = call.max_output_tokens if fitted is None else fitted
        assert reservation.held_nanos >= OUTPUT_NANOS * limit
        return reservation.key

    def refused(self, call, error):
        """A call was not let go: the reason is the truth, and nothing is held for it."""
        run = call.attribution.dimensions["run"]
        latched = any((run, bucket) in self.latched for bucket in buckets_of(call))
        assert (error.reason == "latched") == latched
        if latched:
            return
        assert error.bucket in buckets_of(call) or error.reason == "ceiling"
        needed = int(error.needed * 1_000_000_000)
        if error.reason == "ceiling":
            assert needed > min(self.limit(bucket) for bucket in buckets_of(call))
            return
        spent, held, presumed = self.counters(error.bucket)
        limit = self.limit(error.bucket)
        assert spent + held + presumed + needed > limit
        gone = any(sum(self.counters(b)[::2]) + needed > self.limit(b) for b in buckets_of(call))
        assert (error.reason == "spent") == gone
        if gone:
            assert spent + presumed + needed > limit
            self.latched.add((run, error.bucket))

    # -- what callers do ----------------------------------------------------------------------------------------------

    @rule(target=keys, fits=st.booleans(), **SHAPES)
    def reserve(self, customer, run, tokens, size, fits):
        call = self.call(customer, run, tokens, size)
        try:
            reservation = self.maestro.doors.reserve(call) if fits else self.maestro.reserve(call)
        except CapExceeded as error:
            self.refused(call, error)
            return multiple()
        assert fits or reservation.fitted_output_tokens is None
        return self.admitted(reservation)

    @rule(target=keys, bigger=st.booleans(), other=st.booleans(), **SHAPES)
    def offer(self, customer, run, tokens, size, bigger, other):
        """A door offers; the handler takes what covers its call, or reserves for itself."""
        call = self.call(customer, run, tokens, size)
        try:
            offered = self.maestro.doors.reserve(call)
        except CapExceeded as error:
            self.refused(call, error)
            return multiple()
        self.admitted(offered)
        seen = replace(call, key=new_key())
        if bigger:
            seen = replace(seen, input=[call.input, "y" * 3_000])
        if other:
            seen = replace(seen, model="gpt-4o")
        new = None
        sent = {"max_tokens": offered.fitted_output_tokens}
        with self.maestro.doors.offer(offered, sent):
            if offered.fitted_output_tokens is not None:
                assert self.maestro.doors.take(seen, {}) is None  # it does not carry the limit
            taken = self.maestro.doors.take(seen, sent)
            assert self.maestro.doors.take(seen, sent) is None  # once
            covered = not other and (not bigger or offered.held_nanos >= self.bound(seen, offered))
            assert (taken is not None) == covered
            if taken is None:
                new = self.top_up(seen)
        if taken is None:
            self.known[offered.key].state = "released"
        return multiple(*(key for key in (offered.key if taken else None, new) if key))

    def bound(self, call, offered):
        limit = offered.fitted_output_tokens or call.max_output_tokens
        return self.maestro.admission.quotes.bound(replace(call, max_output_tokens=limit)).nanos

    def top_up(self, call):
        try:
            return self.admitted(self.maestro.reserve(call))
        except CapExceeded as error:
            self.refused(call, error)
            return None

    @rule(key=keys, share=st.sampled_from([0, 0.1, 0.5, 1, 1, 3]), read=st.integers(0, 500))
    def settle(self, key, share, read):
        """The answer is there: shorter than the limit, as long, or (an overrun) longer; perhaps after all hope was lost."""
        one = self.known[key]
        reservation = one.reservation
        most = reservation.fitted_output_tokens or reservation.call.max_output_tokens
        usage = Usage(input_tokens=read + 1, output_tokens=int(most * share))
        if one.state in ("settled", "released"):
            if one.state == "released" or one.usage != usage:
                with pytest.raises(ReservationClosed):
                    self.maestro.settle(reservation, usage)
            return
        late = one.state == "presumed"
        record = self.maestro.settle(reservation, usage)
        rates = (INPUT_NANOS, OUTPUT_NANOS) if reservation.call.model == "gpt-4o-mini" else (2_500, 10_000)
        one.truth = rates[0] * usage.input_tokens + rates[1] * usage.output_tokens
        one.state, one.usage = "settled", usage
        assert record.kind == ("corrected" if late else "settled")
        assert record.cost_nanos == one.truth - (reservation.held_nanos if late else 0)
        assert record.overrun == (one.truth > reservation.held_nanos)

    @rule(key=keys)
    def deliver_twice(self, key):
        one = self.known[key]
        if one.state == "settled":
            first = self.maestro.settle(one.reservation, one.usage)
            assert self.maestro.settle(one.reservation, one.usage) == first
        if one.state == "held":
            call = one.reservation.call
            again = self.maestro.ledger.reserve(Hold(key, 1, call.provider, call.model, call.attribution))
            assert again.amount_nanos == one.reservation.held_nanos

    @rule(key=keys)
    def release(self, key):
        one = self.known[key]
        if one.state == "settled":
            with pytest.raises(ReservationClosed):
                self.maestro.release(one.reservation, "HTTP 429")
            return
        self.maestro.release(one.reservation, "HTTP 429")
        self.maestro.release(one.reservation, "again")
        one.state = "released"

    @rule(key=keys)
    def lose_sight(self, key):
        self.maestro.presume([key])
        if self.known[key].state == "held":
            self.known[key].state = "presumed"

    @rule(run=SHAPES["run"], add=st.sampled_from([0, 500_000]))
    def resume(self, run, add):
        self.maestro.resume(run, add=usd(add), by="a person")
        self.granted[run] = self.granted.get(run, 0) + add
        self.latched = {latch for latch in self.latched if latch[0] != run}

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def every_counter_is_what_the_calls_add_up_to(self):
        if not hasattr(self, "maestro"):
            return
        ledger = self.maestro.ledger
        for meter in ledger.meters():
            for bucket in ledger.buckets(meter):
                counted = self.counters(bucket.label)
                assert (bucket.spent, bucket.held, bucket.presumed) == counted, bucket.label
        assert ledger.check() == []

    @invariant()
    def open_money_is_what_the_line_knows(self):
        if hasattr(self, "maestro"):
            line = self.maestro.admission.line
            held = {key for key, one in self.known.items() if one.state == "held"}
            assert set(line._open) <= held
            assert line._waiters == []


class SQLiteDoorMachine(DoorMachine):
    """The same on a file, which another Maestro opens with other limits at any time."""

    url = "sqlite:///{folder}/doors.db"

    @rule(factor=st.sampled_from([1, 2, 3]), name=st.sampled_from([EVERYTHING, CUSTOMER, RUN]))
    def change_a_cap(self, factor, name):
        self.maestro.close()
        self.limits[name] = LIMITS[name] * factor // 2
        self.maestro = self.start()
        self.latched.clear()  # manners of the process that is gone; the ledger refuses by itself


QUICK = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestMemory = DoorMachine.TestCase
TestMemory.settings = QUICK
TestSQLite = SQLiteDoorMachine.TestCase
TestSQLite.settings = settings(QUICK, max_examples=20)
