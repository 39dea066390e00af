"""Counters that differ from the journal: found at open and on demand, put right while others work, and told."""

import logging
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from clocks import Clock
from journals import write_journal

from maestro_core import Maestro
from maestro_core.ledger import _audit, open_ledger
from maestro_core.types import Attribution, Hold, Meter, Settlement, new_key

DAY_US = 24 * 3_600_000_000
NOON = 20_000 * DAY_US + DAY_US // 2
METERS = [Meter(), Meter(("customer",), (), "day"), Meter(("run",)), Meter(("customer",))]


@pytest.fixture
def clock():
    return Clock(NOON)


def spend(ledger, cost, run="r1"):
    held = ledger.reserve(
        Hold(new_key(), cost, "openai", "gpt-5", Attribution({"customer": "acme", "run": run}))
    )
    ledger.settle(held.key, Settlement(cost_nanos=cost, usage={"input_tokens": 3}))


def damage(path, *statements):
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


DAMAGES = {
    "spent": "UPDATE buckets SET spent_nanos = spent_nanos - 3",
    "held": "UPDATE buckets SET held_nanos = held_nanos + 3",
    "presumed": "UPDATE buckets SET presumed_nanos = 3",
    "a row that is gone": "DELETE FROM buckets WHERE meter_id < 3",
    "a row too many": "INSERT INTO buckets SELECT meter_id, window_start_us, '[\"ghost\"]', 1, 0, 0 FROM buckets WHERE meter_id = 2",
    "tokens of an hour": "UPDATE hourly_spend SET input_tokens = input_tokens + 1 WHERE dimension = 'customer'",
    "an hour that is gone": "DELETE FROM hourly_spend",
}


@pytest.mark.parametrize("statement", DAMAGES.values(), ids=DAMAGES)
def test_a_wrong_counter_is_found_repaired_and_told_when_the_file_is_opened(path, clock, caplog, statement):
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        ledger.declare(METERS)
        spend(ledger, 5)
        held = ledger.reserve(
            Hold(new_key(), 9, "openai", "gpt-5", Attribution({"customer": "acme", "run": "r1"}))
        )
        rows = list(ledger.records())
    damage(path, statement)
    with closing(open_ledger(f"sqlite:///{path}", clock=clock, repair=False)) as ledger:
        found = ledger.check()
    assert found
    with (
        caplog.at_level(logging.WARNING, "maestro"),
        closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger,
    ):
        assert ledger.check() == []
        *before, told = ledger.records()
        assert before == rows
        assert (told.kind, told.cost_nanos, told.detail["first"]) == ("repaired", 0, found)
        ledger.settle(held.key, Settlement(cost_nanos=9))
        assert ledger.check() == []
    [line] = caplog.messages
    assert line.startswith(
        f"ledger sqlite:///{path}: {len(found)} counters were wrong and are repaired: {found[0]}"
    )


def test_a_ledger_in_order_is_opened_without_a_word(path, clock, caplog):
    for _ in range(2):
        with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
            ledger.declare(METERS)
            spend(ledger, 5)
            assert all(record.kind == "settled" for record in ledger.records())
    assert caplog.messages == []


def test_opening_a_long_ledger_looks_at_the_windows_that_the_newest_rows_cover(path, clock, monkeypatch):
    monkeypatch.setattr(_audit, "_NEWEST", 50)
    write_journal(path, 1000, since_us=NOON - 30 * DAY_US, until_us=NOON - DAY_US, clock=clock)
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        ledger.declare(METERS)
        spend(ledger, 5)
    damage(path, "UPDATE buckets SET spent_nanos = spent_nanos + 1")
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        assert [bucket.spent for bucket in ledger.buckets(METERS[1])] == [5]
        (everything,) = ledger.buckets(METERS[0])
        (total,) = ledger.sums(())
        assert everything.spent == total.cost_nanos + 1  # that takes the whole journal
        assert len(ledger.reconcile()) > 100
        (everything,) = ledger.buckets(METERS[0])
        assert everything.spent == total.cost_nanos
        assert ledger.check() == []
        assert ledger.reconcile() == []


WRITER = """
import sys
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Settlement, new_key
ledger = open_ledger(sys.argv[1], repair=False)
print("ready", flush=True)
for i in range(400):
    whom = Attribution({"customer": f"customer-{i % 7}", "run": f"fresh-{i // 10}"})
    held = ledger.reserve(Hold(new_key(), 100, "openai", "gpt-5", whom))
    ledger.settle(held.key, Settlement(cost_nanos=90, usage={"input_tokens": 3}))
"""


def test_reconciling_while_another_process_works_repairs_exactly_what_was_wrong(path):
    now_us = open_ledger("memory:").now_us()
    write_journal(path, 3_000, since_us=now_us - 2 * DAY_US, until_us=now_us)
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        ledger.declare(METERS)
    damage(
        path,
        "UPDATE buckets SET spent_nanos = spent_nanos - 17",
        "DELETE FROM hourly_spend WHERE value = 'team-1'",
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer,
        closing(open_ledger(f"sqlite:///{path}", repair=False)) as ledger,
    ):
        assert writer.stdout.readline() == "ready\n"
        first = ledger.reconcile()
        assert len(first) > 100
        while writer.poll() is None:
            assert ledger.reconcile() == []
        assert writer.returncode == 0
        assert ledger.check() == []
        (bucket,) = ledger.buckets(METERS[0])
        assert bucket.spent == sum(range(1000, 4000)) + 400 * 90


def test_two_that_reconcile_at_once_repair_once(path, clock, monkeypatch):
    url = f"sqlite:///{path}"
    with closing(open_ledger(url, clock=clock)) as ledger:
        ledger.declare(METERS)
        spend(ledger, 5)
        damage(path, "UPDATE buckets SET spent_nanos = 6")
        with closing(open_ledger(url, clock=clock, repair=False)) as other:
            compare, looks = _audit.compare, []

            def slow(connection):
                found = compare(connection)
                looks.append(len(found.counters))
                if len(looks) == 1:
                    assert other.reconcile()  # in the middle of ours
                    spend(other, 7)
                return found

            monkeypatch.setattr("maestro_core.ledger._upkeep.compare", slow)
            assert ledger.reconcile() == []
        assert looks == [4, 4, 0]
        assert {b.spent for meter in METERS for b in ledger.buckets(meter)} == {12}
        assert ledger.check() == []


def test_a_maestro_repairs_when_it_begins_and_the_cap_holds(tmp_path, caplog):
    from maestro_core import CapExceeded
    from maestro_core.types import Call

    settings = {"ledger": f"sqlite:///{tmp_path}/m.db", "caps": [{"limit": "0.01"}]}
    call = {"provider": "openai", "model": "gpt-5-mini", "input": "hello", "max_output_tokens": 4000}
    with closing(Maestro(**settings)) as maestro:
        maestro.settle(maestro.reserve(Call(**call)), None)
    damage(tmp_path / "m.db", "UPDATE buckets SET spent_nanos = 0")
    with closing(Maestro(**settings)) as maestro, pytest.raises(CapExceeded, match="spent"):
        maestro.reserve(Call(**call))
    assert "1 counters were wrong and are repaired" in caplog.text
