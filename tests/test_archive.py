"""Old rows in a file of their own: counters, caps and reports stay right, nothing is lost on the way."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clocks import Clock
from journals import write_journal
from typer.testing import CliRunner

from maestro_core.cli import app
from maestro_core.clock import from_micros, to_micros
from maestro_core.errors import LedgerUnavailable, ReservationClosed
from maestro_core.ledger import _archive, open_ledger
from maestro_core.types import Attribution, Held, Hold, Meter, Refused, Settlement, new_key

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
NOW = to_micros(datetime(2026, 11, 23, 12, tzinfo=UTC))
BEFORE = to_micros(datetime(2026, 8, 1, tzinfo=UTC))
METERS = [
    Meter(), Meter(("customer",)), Meter(("run",)), Meter(("run", "agent")), Meter((), (("team", "team-1"),)),
    Meter(("agent",), (), "month"), Meter(("customer",), (), "day"),
]  # fmt: skip


@pytest.fixture
def clock():
    return Clock(NOW)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "archive.db"


@pytest.fixture
def ledger(path, clock):
    """300 calls over 150 days, every meter declared when they were made or after."""
    write_journal(path, 300, since_us=NOW - 150 * DAY_US, until_us=NOW, customers=10, clock=clock)
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        ledger.declare(METERS[:-2])
        yield ledger


def call(amount, *limits, key=None, **dimensions):
    attribution = Attribution(dimensions, (("agent", "researcher"),))
    return Hold(key or new_key(), amount, "openai", "gpt-5", attribution, limits)


def totals(ledger, *by, **options):
    return {row.values: row.cost_nanos for row in ledger.sums(by, **options)}


def everything(ledger):
    return {
        (meter.id, b.values): (b.spent, b.held, b.presumed) for meter in METERS for b in ledger.buckets(meter)
    }


def test_rows_move_and_counters_and_reports_stay(ledger, file, clock):
    counters = everything(ledger)
    dimensions = ["team", "customer", "agent", "model", "provider", "feature"]
    reports = {by: totals(ledger, by) for by in dimensions} | {"pair": totals(ledger, "customer", "model")}
    old = [record for record in ledger.records() if to_micros(record.at) < BEFORE]
    moved = ledger.archive(BEFORE + 59 * 60_000_000, file)
    assert (moved.before_us, moved.records, moved.cost_nanos, moved.kept) == (
        BEFORE, len(old), sum(record.cost_nanos for record in old), 0,
    )  # fmt: skip
    assert len(old) > 50
    assert all(to_micros(record.at) >= BEFORE for record in ledger.records())
    assert everything(ledger) == counters
    assert {by: totals(ledger, by) for by in dimensions} | {
        "pair": totals(ledger, "customer", "model")
    } == reports
    assert ledger.check() == []
    assert ledger.archives() == [(BEFORE, str(file))]
    with closing(open_ledger(f"sqlite:///{file}", clock=clock)) as archive:
        assert list(archive.records()) == old
        assert archive.check() == []
        assert sum(totals(archive, "team").values()) == moved.cost_nanos


def test_what_sums_do_not_tell_apart_is_a_row_and_every_report_adds_up(ledger, file):
    total = totals(ledger)[()]
    ones = totals(ledger, where={"team": "team-1"})[()]
    moved = ledger.archive(BEFORE, file).cost_nanos
    for by in (("team", "customer"), ("run",), ("team", "run", "model"), ("conversation", "team")):
        rows = totals(ledger, *by)
        assert sum(rows.values()) == total
        assert sum(cost for values, cost in rows.items() if "(archived)" in values) == moved
    by_customer = totals(ledger, "customer", where={"team": "team-1"})
    assert sum(by_customer.values()) == ones
    assert 0 < by_customer["(archived)",] < moved
    assert totals(ledger, "team", "customer", where={"team": "team-1"})["team-1", "(archived)"] > 0
    for where in ({"team": "team-1", "customer": "customer-1"}, {"run": "run-3"}):
        with pytest.raises(ValueError, match="calls before 2026-08-01T00:00Z are archived") as caught:
            ledger.sums(("team",), where=where)
        assert " and ".join(sorted(where)) in str(caught.value)
        assert ledger.sums((), where=where, since_us=BEFORE)


def test_periods_that_meet_add_up_although_hours_are_whole(ledger, file):
    total = totals(ledger)[()]
    ledger.archive(BEFORE, file)
    for cut in (
        BEFORE - 40 * DAY_US - 7_000_000,
        BEFORE - 1,
        BEFORE,
        BEFORE + 5,
        NOW - 90 * DAY_US - 1_234_567,
    ):
        for by in ((), ("team",), ("team", "run")):
            parts = totals(ledger, *by, until_us=cut), totals(ledger, *by, since_us=cut)
            assert sum(sum(part.values()) for part in parts) == total


def test_caps_without_windows_go_on_counting_what_is_archived(ledger, file, path, clock):
    customer = totals(ledger, "customer")["customer-3",]
    run = totals(ledger, "run")["run-5",]
    ledger.archive(BEFORE, file)
    pair = Meter(("customer", "team"))  # declared only now
    for meter, spent in ((Meter(("customer",)), customer), (Meter(("run",)), run), (pair, customer)):
        whom = {"customer": "customer-3", "team": "team-3", "run": "run-5"}
        refused = ledger.reserve(call(1, (meter, spent), **whom))
        assert isinstance(refused, Refused), meter.id
        assert refused.bucket.spent == spent
        held = ledger.reserve(call(1, (meter, spent + 1), **whom))
        assert isinstance(held, Held)
        ledger.release(held.key, "not sent")
    with ledger._database.writing as connection:
        connection.execute("DELETE FROM buckets")
    assert ledger.reconcile()
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as again:
        assert again.check() == []
        assert isinstance(again.reserve(call(1, (Meter(("run",)), run), run="run-5")), Refused)
        assert {b.spent for b in again.buckets(pair) if b.values == ("customer-3", "team-3")} == {customer}


def test_archiving_goes_on_where_it_left_off_and_adds_to_the_file(ledger, file, clock):
    first = ledger.archive(BEFORE - 30 * DAY_US, file)
    second = ledger.archive(BEFORE, file)
    assert ledger.archive(BEFORE, file).records == 0
    assert ledger.check() == []
    with closing(open_ledger(f"sqlite:///{file}", clock=clock)) as archive:
        assert len(list(archive.records())) == first.records + second.records
        assert totals(archive)[()] == first.cost_nanos + second.cost_nanos
        assert archive.check() == []


@pytest.mark.parametrize("dies", ["remember", "take_out"])
def test_a_process_that_dies_while_archiving_loses_nothing(ledger, file, path, clock, monkeypatch, dies):
    monkeypatch.setattr(_archive, "_STEP", 20)
    counters, total, rows = everything(ledger), totals(ledger)[()], len(list(ledger.records()))
    work, done = getattr(_archive, dies), []

    def die(*arguments):
        done.append(work(*arguments))
        if len(done) == 2 or dies == "remember":
            raise KeyboardInterrupt
        return done[-1]

    with monkeypatch.context() as patched:
        patched.setattr(_archive, dies, die)
        with pytest.raises(KeyboardInterrupt):
            ledger.archive(BEFORE, file)
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as again:
        assert (everything(again), totals(again)[()], again.check()) == (counters, total, [])
        assert sum(totals(again, "run").values()) == total
        again.archive(BEFORE, file)
        assert (everything(again), totals(again)[()], again.check()) == (counters, total, [])
        left = [record for record in again.records() if record.kind != "archived"]
    with closing(open_ledger(f"sqlite:///{file}", clock=clock)) as archive:
        assert len(left) + len(list(archive.records())) == rows
        assert totals(archive)[()] + sum(record.cost_nanos for record in left) == total
        assert archive.check() == []


def test_calls_that_are_not_over_keep_their_rows_and_can_be_corrected(path, file, clock):
    clock.now = BEFORE - 2 * DAY_US
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        ledger.declare(METERS)
        held = ledger.reserve(call(50, customer="acme", run="r"))
        lost = ledger.reserve(call(70, customer="acme", run="r"))
        done = ledger.reserve(call(90, customer="acme", run="r"))
        ledger.settle(done.key, Settlement(cost_nanos=80))
        ledger.presume(keys=[lost.key])
        clock.now = NOW
        with pytest.raises(
            ValueError, match="1 calls from before are still open, the oldest since 2026-07-30"
        ):
            ledger.archive(BEFORE, file)
        ledger.settle(held.key, Settlement(cost_nanos=40))
        moved = ledger.archive(BEFORE, file)
        assert (moved.records, moved.cost_nanos, moved.kept) == (2, 120, 1)
        assert ledger.check() == []
        assert totals(ledger, "customer", "run") == {("acme", "r"): 70, ("(archived)", "(archived)"): 120}
        ledger.settle(lost.key, Settlement(cost_nanos=60))
        assert ledger.check() == []
        assert totals(ledger) == {(): 180}
        assert ledger.archive(BEFORE, file).records == 2
        assert ledger.check() == []
        with pytest.raises(ReservationClosed):
            ledger.correct(lost.key, Settlement(cost_nanos=61))
        assert next(iter(ledger.buckets(Meter(("run",))))).spent == 180


def test_a_call_that_is_corrected_meanwhile_stays_whole(ledger, file, monkeypatch):
    first = next(ledger.records())
    remember, total = _archive.remember, totals(ledger)[()]

    def corrected_first(connection, *arguments):
        remember(connection, *arguments)
        monkeypatch.setattr(_archive, "remember", remember)

    monkeypatch.setattr(_archive, "remember", corrected_first)
    copy = _archive.copy

    def copy_then_correct(*arguments):
        copied = copy(*arguments)
        ledger.correct(first.key, Settlement(cost_nanos=5))
        return copied

    with monkeypatch.context() as patched:
        patched.setattr(_archive, "copy", copy_then_correct)
        moved = ledger.archive(BEFORE, file)
    assert moved.kept == 2
    assert totals(ledger)[()] == total - first.cost_nanos + 5
    ledger.correct(first.key, Settlement(cost_nanos=6))
    assert ledger.check() == []
    assert ledger.archive(BEFORE, file).records == 3
    assert totals(ledger)[()] == total - first.cost_nanos + 6
    assert ledger.check() == []


def test_an_archive_of_everything_does_not_number_rows_anew(path, file, clock):
    clock.now = BEFORE - DAY_US
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        for amount in (5, 6):
            held = ledger.reserve(call(amount))
            ledger.settle(held.key, Settlement(cost_nanos=amount))
        clock.now = NOW
        ledger.archive(BEFORE, file)
        held = ledger.reserve(call(7))
        record = ledger.settle(held.key, Settlement(cost_nanos=7))
        assert record.seq == 4
        clock.now += 100 * DAY_US
        assert ledger.archive(NOW + HOUR_US, file).cost_nanos == 7
    with closing(open_ledger(f"sqlite:///{file}", clock=clock)) as archive:
        assert [record.cost_nanos for record in archive.records()] == [5, 6, 0, 7]


@pytest.mark.parametrize(
    ("now", "newest"),
    [
        ("2026-11-23T12:00", "2026-10-31T10:00Z"),  # the month began on the first in every zone
        ("2026-11-01T05:00", "2026-09-30T10:00Z"),  # in some it is October still
        ("2026-12-02T12:00", "2026-11-29T10:00Z"),  # the week began in November
    ],
)
def test_what_a_current_window_needs_is_not_archived(path, file, now, newest):
    clock = Clock(to_micros(datetime.fromisoformat(now).replace(tzinfo=UTC)))
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        with pytest.raises(ValueError, match=f"archive what is before {newest} or earlier"):
            ledger.archive(to_micros(datetime.fromisoformat(newest)) + HOUR_US, file)
        assert not file.exists()
        ledger.archive(to_micros(datetime.fromisoformat(newest)), file)


def test_the_journal_lets_go_of_archived_rows_only(ledger, file):
    ledger.archive(BEFORE, file)
    with (
        pytest.raises(LedgerUnavailable, match="append-only"),
        ledger._database.writing as connection,
    ):
        connection.execute("DELETE FROM journal")
    assert list(ledger.records())


def test_a_file_of_another_ledger_is_refused_and_nothing_moves(ledger, file, tmp_path, clock):
    with closing(open_ledger(f"sqlite:///{file}", clock=clock)) as other:
        held = other.reserve(call(5))
        other.settle(held.key, Settlement(cost_nanos=5))
    before = list(ledger.records())
    with pytest.raises(ValueError, match="holds rows of another ledger"):
        ledger.archive(BEFORE, file)
    with pytest.raises(ValueError, match="is the ledger itself"):
        ledger.archive(BEFORE, tmp_path / "ledger.db")
    (tmp_path / "text").write_text("no database, but long enough to look like the header of one. " * 20)
    with pytest.raises(LedgerUnavailable, match="text cannot be used: it is not a SQLite database"):
        ledger.archive(BEFORE, tmp_path / "text")
    assert list(ledger.records()) == before


WRITER = """
import sys
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Settlement, new_key
ledger = open_ledger(sys.argv[1], repair=False)
print("ready", flush=True)
for i in range(300):
    whom = Attribution({"customer": f"customer-{i % 7}", "run": f"run-{i % 10}"})
    held = ledger.reserve(Hold(new_key(), 100, "openai", "gpt-5", whom))
    ledger.settle(held.key, Settlement(cost_nanos=90, usage={"input_tokens": 3}))
"""


def test_agents_go_on_while_old_rows_are_moved(path, file, monkeypatch):
    monkeypatch.setattr(_archive, "_STEP", 50)
    now_us = open_ledger("memory:").now_us()
    write_journal(path, 2_000, since_us=now_us - 100 * DAY_US, until_us=now_us)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", WRITER, f"sqlite:///{path}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer,
        closing(open_ledger(f"sqlite:///{path}", repair=False)) as ledger,
    ):
        ledger.declare(METERS)
        assert writer.stdout.readline() == "ready\n"
        assert ledger.archive(now_us - 50 * DAY_US, file).records == 1000
        assert ledger.check() == []
        assert writer.wait(60) == 0
        assert ledger.check() == []
        assert totals(ledger)[()] == sum(range(1000, 3000)) + 300 * 90


def test_sums_that_no_longer_agree_with_what_was_carried_forward_are_told(ledger, file):
    ledger.archive(BEFORE, file)
    with ledger._database.writing as connection:
        connection.execute("UPDATE carried SET cost_nanos = cost_nanos + 1 WHERE run = 'run-1'")
    assert any("the archive files have the rows" in line for line in ledger.check())


def test_the_views_for_sql_users_keep_the_whole_history(ledger, file, path):
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT sum(cost_nanos), sum(calls) FROM spend_by_team"
        before = connection.execute(query).fetchone()
        moved = ledger.archive(BEFORE, file)
        assert connection.execute(query).fetchone() == before
        assert f"{from_micros(moved.before_us):%Y-%m-%d}" == "2026-08-01"


# --- maestro archive


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return run


def test_the_command_moves_old_records_and_says_where_they_are(shell, tmp_path):
    now_us = open_ledger("memory:").now_us()
    write_journal(tmp_path / "maestro.db", 100, since_us=now_us - 200 * DAY_US, until_us=now_us)
    total = json.loads(shell("report", "--since", "all", "--json").stdout)["total"]
    said = shell("archive", "--before", "90d").stdout
    assert re.match(r"5[56] records of calls before .* UTC, \$0.0000\d+, moved to maestro-archive.db\n", said)
    assert 'sqlite3 maestro.db "VACUUM"' in said
    assert json.loads(shell("report", "--since", "all", "--json").stdout)["total"] == total
    pairs = shell("report", "--since", "all", "--by", "run,customer")
    assert "(archived): only sums by one dimension are left here" in pairs.stderr
    assert "all is well" in shell("doctor").stdout
    day = from_micros(now_us - 60 * DAY_US).date()
    found = json.loads(shell("archive", "--before", f"{day}", "--to", "old.db", "--json").stdout)
    assert found["before"] == f"{day}T00:00:00+00:00"
    assert 10 < found["records"] < 20
    assert (found["file"], found["kept"]) == ("old.db", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--before", "1h"], "calls of the current month and week stay in the journal"),
        (["--before", "90d", "--to", "maestro.db"], "is the ledger itself"),
        (["--before", "90d", "--to", "no/such/folder.db"], "does not exist; create it or name another file"),
    ],
)
def test_the_command_refuses_in_one_line(shell, tmp_path, arguments, message):
    open_ledger(f"sqlite:///{tmp_path}/maestro.db").close()
    error = shell("archive", *arguments, code=1).stderr
    assert message in error
    assert error.count("\n") == 1
