"""Meters in a file: filled in steps while others write, by whoever is there; buckets of runs dropped and rebuilt."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from clocks import Clock
from journals import write_journal

from maestro_core.ledger import _filling, _run_buckets, open_ledger
from maestro_core.types import Attribution, Held, Hold, Meter, Refused, Settlement, new_key

DAY_US = 24 * 3_600_000_000
NOON = 20_000 * DAY_US + DAY_US // 2
EVERYTHING = Meter()
CUSTOMER = Meter(("customer",))
TEAM_DAILY = Meter(("team",), (), "day")
RUN = Meter(("run",))
RUN_TEAM = Meter(("run", "team"))
RUN_DAILY = Meter(("run",), (), "day")
ONE_RUN = Meter((), (("run", "run-3"),))
METERS = [EVERYTHING, CUSTOMER, TEAM_DAILY, RUN, RUN_TEAM, RUN_DAILY, ONE_RUN]


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture
def open_(path, clock):
    """Open the file as often as wanted; each ledger is as another process sees it."""
    opened = []

    def another():
        opened.append(open_ledger(f"sqlite:///{path}", clock=clock))
        return opened[-1]

    yield another
    for ledger in opened:
        ledger.close()


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(_filling, "_AT_ONCE", 10)
    monkeypatch.setattr(_filling, "_BUCKETS", 3)
    monkeypatch.setattr(_filling, "_RUNS", 2)


def call(amount, *limits, run="run-3", team="growth"):
    attribution = Attribution({"customer": "acme", "team": team} | ({"run": run} if run else {}))
    return Hold(new_key(), amount, "openai", "gpt-5", attribution, limits)


def spend(ledger, cost, **whom):
    held = ledger.reserve(call(cost, **whom))
    return ledger.settle(held.key, Settlement(cost_nanos=cost))


def spent(ledger, meter):
    return {b.values: b.spent for b in ledger.buckets(meter)}


# --- filling


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.id)
def test_a_meter_filled_in_steps_says_what_one_filled_at_once_says(path, open_, clock, monkeypatch, meter):
    write_journal(path, 60, since_us=NOON - 2 * DAY_US, until_us=NOON, clock=clock)
    ledger = open_()
    spend(ledger, 7, run=None)
    ledger.reserve(call(11))
    ledger.reserve(call(13, run=None))
    lost = ledger.reserve(call(17))
    ledger.presume(keys=[lost.key])
    ledger.close()
    whole = path.with_name("whole.db")
    whole.write_bytes(path.read_bytes())
    with closing(open_ledger(f"sqlite:///{whole}", clock=clock)) as at_once:
        at_once.declare([meter])
        expected = at_once.buckets(meter)
    monkeypatch.setattr(_filling, "_AT_ONCE", 10)
    monkeypatch.setattr(_filling, "_BUCKETS", 3)
    ledger = open_()
    ledger.declare([meter])
    assert ledger.buckets(meter) == expected
    assert sum(bucket.used for bucket in expected) > 0
    assert ledger.check() == []


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.id)
def test_others_write_while_a_meter_is_filled(path, open_, clock, monkeypatch, small_steps, meter):
    write_journal(path, 60, since_us=NOON - 2 * DAY_US, until_us=NOON, clock=clock)
    ledger, other = open_(), open_()
    settled, released, late = (other.reserve(call(cost)) for cost in (11, 13, 17))
    read = _filling.spends

    def others_write(connection, *arguments, **options):
        rows = list(read(connection, *arguments, **options))
        other.settle(settled.key, Settlement(cost_nanos=10))
        other.release(released.key, "429")
        other.presume(keys=[late.key])
        spend(other, 5)
        spend(other, 6, run=None)
        other.reserve(call(19, run="new"))
        return rows

    monkeypatch.setattr(_filling, "spends", others_write)
    ledger.declare([meter])
    assert ledger.check() == []
    other.settle(late.key, Settlement(cost_nanos=16))
    assert other.check() == []


def test_calls_between_the_declaration_and_the_filling_count_once(
    path, open_, clock, monkeypatch, small_steps
):
    write_journal(path, 60, since_us=NOON - DAY_US, until_us=NOON, clock=clock)
    ledger, other = open_(), open_()

    def spend_first(*arguments):
        spend(other, 5)
        _filling.fill(*arguments)

    monkeypatch.setattr("maestro_core.ledger.sqlite.fill", spend_first)
    ledger.declare([CUSTOMER])
    assert spent(ledger, CUSTOMER)["acme",] == 5
    assert ledger.check() == []


def test_a_process_that_dies_while_filling_is_relieved_by_the_next(
    path, open_, clock, monkeypatch, small_steps
):
    write_journal(path, 60, since_us=NOON - DAY_US, until_us=NOON, clock=clock)
    advance, steps = _filling._advance, []

    def dies(*arguments, **options):
        steps.append(advance(*arguments, **options))
        if len(steps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_filling, "_advance", dies)
    ledger = open_()
    with pytest.raises(KeyboardInterrupt):
        ledger.declare([CUSTOMER])
    assert 0 < sum(spent(ledger, CUSTOMER).values()) < 61_770
    spend(ledger, 5, run=None)
    # Who caps the meter has to know all of it before the first call is admitted.
    limit = 1000 + 59  # what customer-59 has spent
    other, attribution = open_(), Attribution({"customer": "customer-59"})
    refused = other.reserve(Hold(new_key(), 1, "openai", "gpt-5", attribution, ((CUSTOMER, limit),)))
    assert isinstance(refused, Refused)
    assert refused.bucket.spent == limit
    assert sum(spent(other, CUSTOMER).values()) == 61_770 + 5
    assert other.check() == []


WRITER = """
import sys
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Settlement, new_key
ledger = open_ledger(sys.argv[1])
print("ready", flush=True)
for i in range(400):
    whom = Attribution({"customer": f"customer-{i % 7}", "run": f"fresh-{i // 10}"})
    held = ledger.reserve(Hold(new_key(), 100, "openai", "gpt-5", whom))
    ledger.settle(held.key, Settlement(cost_nanos=90))
"""


def test_a_meter_is_filled_while_another_process_works(path, small_steps):
    now_us = open_ledger("memory:").now_us()
    write_journal(path, 2_000, since_us=now_us - 2 * DAY_US, until_us=now_us)
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer,
        closing(open_ledger(f"sqlite:///{path}")) as ledger,
    ):
        assert writer.stdout.readline() == "ready\n"
        for meter in METERS:
            ledger.declare([meter])
        assert writer.wait(60) == 0
        assert ledger.check() == []
        assert sum(spent(ledger, EVERYTHING).values()) == sum(range(1000, 3000)) + 400 * 90
        assert ledger.check() == []


def test_a_limit_declared_after_the_money_was_spent_counts_it(path, open_, small_steps):
    ledger = open_()
    for _ in range(20):
        spend(ledger, 5)
    for meter in METERS:
        other = open_()
        assert isinstance(other.reserve(call(1, (meter, 100))), Refused), meter.id
        assert isinstance(other.reserve(call(1, (meter, 103))), Held), meter.id
        for hold in other.holds():
            other.release(hold.key, "not sent")
    assert ledger.check() == []


# --- runs


def test_the_bucket_of_an_old_run_is_dropped_when_others_begin_and_returns_with_all_it_spent(open_, clock):
    ledger = open_()
    ledger.declare([RUN, RUN_TEAM, CUSTOMER])
    spend(ledger, 5)
    spend(ledger, 6, team="sales")
    spend(ledger, 9, run=None)
    clock.now += 8 * DAY_US
    spend(ledger, 7, run="young")
    assert spent(ledger, RUN) == {("young",): 7, ("(unattributed)",): 9}
    assert spent(ledger, RUN_TEAM) == {("young", "growth"): 7, ("(unattributed)", "growth"): 9}
    assert spent(ledger, CUSTOMER) == {("acme",): 27}
    assert ledger.check() == []
    other = open_()
    refused = other.reserve(call(1, (RUN, 11)))
    assert isinstance(refused, Refused)
    assert refused.bucket.spent == 11
    assert isinstance(other.reserve(call(1, (RUN_TEAM, 6))), Held)
    assert spent(other, RUN_TEAM)["run-3", "growth"] == 5
    assert other.check() == []


def test_a_run_that_goes_on_by_another_agent_keeps_what_it_spent(open_, clock):
    ledger = open_()
    ledger.declare([RUN, RUN_TEAM])
    spend(ledger, 5)
    clock.now += 8 * DAY_US
    spend(ledger, 6, team="sales")  # a new bucket of the second meter, and the first one's is old
    assert spent(ledger, RUN) == {("run-3",): 11}
    assert ledger.check() == []


@pytest.mark.parametrize("amount", [0, 4])
def test_the_bucket_of_a_run_with_an_open_call_stays(open_, clock, amount):
    ledger = open_()
    ledger.declare([RUN])
    spend(ledger, 5)
    held = ledger.reserve(call(amount))
    clock.now += 8 * DAY_US
    spend(ledger, 7, run="young")
    ledger.settle(held.key, Settlement(cost_nanos=3))
    assert spent(ledger, RUN)["run-3",] == 8
    assert ledger.check() == []


def test_a_correction_brings_a_dropped_bucket_back_whole(open_, clock):
    ledger = open_()
    ledger.declare([RUN])
    first = spend(ledger, 5)
    spend(ledger, 6)
    clock.now += 8 * DAY_US
    spend(ledger, 7, run="young")
    assert ("run-3",) not in spent(ledger, RUN)
    ledger.correct(first.key, Settlement(cost_nanos=4))
    assert spent(ledger, RUN)["run-3",] == 10
    assert ledger.check() == []


def test_dropping_keeps_up_with_runs_of_any_length(open_, clock, monkeypatch):
    monkeypatch.setattr(_run_buckets, "_SLICE", 4)
    ledger = open_()
    ledger.declare([RUN])
    for i in range(30):
        spend(ledger, 1, run=f"old-{i // 3}")
        clock.now += 1
    clock.now += 8 * DAY_US
    for i in range(10):
        spend(ledger, 1, run=f"new-{i}")
        clock.now += 1
    assert spent(ledger, RUN) == {(f"new-{i}",): 1 for i in range(10)}
    assert ledger.check() == []


def test_old_runs_are_looked_for_again_after_a_minute_without_any(open_, clock):
    ledger = open_()
    ledger.declare([RUN])
    spend(ledger, 5, run="old")
    clock.now += 7 * DAY_US - 1
    spend(ledger, 1, run="new-1")
    clock.now += 2
    spend(ledger, 1, run="new-2")
    assert ("old",) in spent(ledger, RUN)  # which may be, for a minute
    clock.now += 60_000_000
    spend(ledger, 1, run="new-3")
    assert ("old",) not in spent(ledger, RUN)
    assert ledger.check() == []
