"""What only a file can do: many processes, crashes, forks, older and newer schemas, broken disks, SQL users."""

import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from clocks import Clock

from maestro_core.errors import LedgerUnavailable, ReservationClosed
from maestro_core.ledger import _database, open_ledger
from maestro_core.types import Attribution, Cap, Held, Hold, Meter, Refused, Settlement, new_key

ROOT = Path(__file__).parents[1]

EVERYTHING = Meter()
CUSTOMER = Meter(("customer",))
ACME = Attribution({"team": "growth", "customer": "acme", "run": "r1"}, (("agent", "boss"),))
USD = 1_000_000_000
NOBODY = 65_534


@pytest.fixture
def ledger(path):
    ledger = open_ledger(f"sqlite:///{path}")
    yield ledger
    ledger.close()


def hold(amount=USD, *limits, attribution=ACME, key=None):
    return Hold(key or new_key(), amount, "openai", "gpt-5", attribution, limits)


def spend(ledger, cost, attribution=ACME):
    held = ledger.reserve(hold(cost, attribution=attribution))
    return ledger.settle(held.key, Settlement(cost_nanos=cost, usage={"input_tokens": 7, "output_tokens": 3}))


def counters(ledger, meter):
    return {b.values: (b.spent, b.held, b.presumed) for b in ledger.buckets(meter)}


def integrity(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0]


def one_line(caught, path):
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# --- processes


def _work(url, limit, calls, admitted):
    ledger = open_ledger(url)
    for _ in range(calls):
        outcome = ledger.reserve(hold(USD, (EVERYTHING, limit), (CUSTOMER, limit)))
        if isinstance(outcome, Held):
            ledger.settle(outcome.key, Settlement(cost_nanos=USD))
            admitted.put(outcome.key)
    admitted.put(None)
    ledger.close()


def test_four_processes_share_a_cap_worth_ten(path):
    context = multiprocessing.get_context("spawn")
    admitted = context.Queue()
    url = f"sqlite:///{path}"
    workers = [context.Process(target=_work, args=(url, 10 * USD, 25, admitted)) for _ in range(4)]
    for worker in workers:
        worker.start()
    keys, done = [], 0
    while done < 4:
        key = admitted.get(timeout=60)
        keys += [key] if key else []
        done += key is None
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(keys) == 10
    with closing(open_ledger(url)) as ledger:
        assert counters(ledger, CUSTOMER) == {("acme",): (10 * USD, 0, 0)}
        assert {record.key for record in ledger.records()} == set(keys)
        assert ledger.check() == []


def test_a_process_without_caps_feeds_the_meters_of_others(path, ledger):
    with closing(open_ledger(f"sqlite:///{path}")) as other:
        spend(other, 5)
        ledger.declare([CUSTOMER])
        spend(other, 7)
        held = other.reserve(hold(11))
        assert counters(ledger, CUSTOMER) == {("acme",): (12, 11, 0)}
        ledger.declare([EVERYTHING])
        other.release(held.key, "cancelled")
        assert counters(ledger, EVERYTHING) == {(): (12, 0, 0)}
    assert ledger.check() == []


def test_another_ledger_may_settle_and_the_owner_stays_on_the_hold(path, ledger):
    held = ledger.reserve(hold(5))
    with closing(open_ledger(f"sqlite:///{path}")) as other:
        mine = other.reserve(hold(6))
        owners = {h.key: h.owner for h in other.holds()}
        assert owners[held.key] == owners[mine.key]  # one for each process and file
        other.settle(held.key, Settlement(cost_nanos=4))
    assert [h.key for h in ledger.holds()] == [mine.key]


KILLED = """
import sys
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Meter, Settlement, new_key
ledger = open_ledger(sys.argv[1])
ledger.declare([Meter(), Meter(("customer",))])
print("ready", flush=True)
while True:
    held = ledger.reserve(Hold(new_key(), 1000, "openai", "gpt-5", Attribution({"customer": "acme"})))
    ledger.settle(held.key, Settlement(cost_nanos=900))
    print(held.key, flush=True)
"""


def test_a_killed_process_loses_nothing_it_was_told(path):
    told = []
    for round_ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, f"sqlite:///{path}"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        with child:
            told += [child.stdout.readline().strip() for _ in range(20 + 7 * round_)]
            child.send_signal(signal.SIGKILL)
            told += [line.strip() for line in child.stdout if line.endswith("\n")]
    assert integrity(path) == "ok"
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        keys = {record.key for record in ledger.records()}
        assert {key for key in told if key != "ready"} <= keys
        assert ledger.check() == []
        stranded = ledger.holds()
        ledger.presume(older_than_us=ledger.now_us() + 1)
        [bucket] = ledger.buckets(EVERYTHING)
        assert (bucket.spent, bucket.held, bucket.presumed) == (900 * len(keys), 0, 1000 * len(stranded))
        assert ledger.check() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_its_own_connection_and_is_another_owner(path, ledger):
    ledger.declare([CUSTOMER])
    mine = ledger.reserve(hold(5))
    ledger.now_us()  # the reading connection is open, too
    code = _in_child(lambda: ledger.reserve(hold(6)) and ledger.now_us() and ledger.check() == [])
    assert code == 0
    owners = [h.owner for h in ledger.holds()]
    assert len(set(owners)) == 2
    assert counters(ledger, CUSTOMER) == {("acme",): (0, 11, 0)}
    ledger.settle(mine.key, Settlement(cost_nanos=5))
    assert ledger.check() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_no_connection_crosses_a_fork_even_while_threads_write(path, ledger):
    ledger.declare([CUSTOMER])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            spend(ledger, 1)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        codes = [_in_child(lambda: bool(spend(ledger, 1)) and _inherited_nothing()) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 5
    assert integrity(path) == "ok"
    assert ledger.check() == []


def test_a_fork_behind_pythons_back_is_noticed(ledger, monkeypatch):
    held = ledger.reserve(hold(5))
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as a child sees it whose fork ran no hooks
    inherited = ledger._database.writing._connection
    with pytest.raises(ReservationClosed, match="which this one was forked from"):
        ledger.settle(held.key, Settlement(cost_nanos=4))
    ledger.reserve(hold(6))
    assert ledger._database.writing._connection is not inherited
    assert len({h.owner for h in ledger.holds()}) == 2
    ledger.close()  # while it is the child's, or nobody closes what the child has opened
    _database._inherited.remove(inherited)
    inherited.close()


def _inherited_nothing():
    return not _database._inherited


def _in_child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- schema


def test_an_empty_file_becomes_a_ledger(path):
    path.touch()
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        spend(ledger, 5)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(_database._STEPS),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_keeps_the_pages_it_was_made_with(path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(_database, "_PAGE_BYTES", 4096)
        with closing(open_ledger(f"sqlite:///{path}")) as ledger:
            spend(ledger, 5)
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        spend(ledger, 6)
        assert ledger.sums(())[0].cost_nanos == 11
        assert ledger.check() == []
    assert page_bytes(path) == 4096
    new = path.with_name("new.db")
    open_ledger(f"sqlite:///{new}").close()
    assert page_bytes(new) == 2048


def page_bytes(path):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA page_size").fetchone()[0]


def test_an_older_schema_is_brought_up_step_by_step(path, tmp_path, monkeypatch):
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        spend(ledger, 5)
    step = tmp_path / "step.sql"
    step.write_text(
        "ALTER TABLE meters ADD COLUMN note TEXT;\nCREATE TABLE extra (id INTEGER PRIMARY KEY);\n"
    )
    monkeypatch.setattr(_database, "_STEPS", (*_database._STEPS, str(step)))
    for _ in range(2):  # the second opening has nothing left to do
        with closing(open_ledger(f"sqlite:///{path}")) as ledger:
            assert ledger.sums(())[0].cost_nanos == 5
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(_database._STEPS),)
        assert connection.execute("SELECT count(note) FROM meters, extra").fetchone() == (0,)


@pytest.mark.parametrize(
    "source", sorted((ROOT / "maestro_core/ledger").rglob("*.py")), ids=lambda path: path.stem
)
def test_no_statement_numbers_its_parameters(source):
    # Python 3.12.0 to 3.12.3 take `?1` for a name, and warn that a tuple gives it no value.
    assert not re.search(r"[=<>(,+] ?\?[0-9]", source.read_text(encoding="utf-8"))


def test_a_step_that_fails_leaves_the_file_as_it_was(path, tmp_path, monkeypatch):
    open_ledger(f"sqlite:///{path}").close()
    step = tmp_path / "step.sql"
    step.write_text("CREATE TABLE extra (id INTEGER);\nCREATE TABLE meters (id INTEGER);\n")
    with monkeypatch.context() as patched:
        patched.setattr(_database, "_STEPS", (*_database._STEPS, str(step)))
        with pytest.raises(LedgerUnavailable, match="table meters already exists"):
            open_ledger(f"sqlite:///{path}")
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        spend(ledger, 5)


def test_many_processes_may_create_the_file_at_once(path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open, args=(f"sqlite:///{path}",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4


def _open(url):
    open_ledger(url).close()


def test_a_newer_schema_is_refused(path):
    open_ledger(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerUnavailable, match="newer Maestro wrote it") as caught:
        open_ledger(f"sqlite:///{path}")
    assert f"(schema 99, this one knows {len(_database._STEPS)}); upgrade maestro-finops" in one_line(
        caught, path
    )


@pytest.mark.parametrize("setup", ["CREATE TABLE auth_user (id INTEGER)", "PRAGMA user_version = 1"])
def test_a_database_of_another_application_is_refused_untouched(path, setup):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(setup)
    before = path.read_bytes()
    with pytest.raises(LedgerUnavailable, match="database of another application") as caught:
        open_ledger(f"sqlite:///{path}")
    one_line(caught, path)
    assert path.read_bytes()[100:] == before[100:]


# --- broken disks: one clear line, nothing lost


def test_a_missing_folder(tmp_path):
    with pytest.raises(LedgerUnavailable, match="does not exist; create it") as caught:
        open_ledger(f"sqlite:///{tmp_path}/no/such/ledger.db")
    one_line(caught, tmp_path / "no/such")


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(LedgerUnavailable, match="check that it is a file") as caught:
        open_ledger(f"sqlite:///{tmp_path}")
    one_line(caught, tmp_path)


def test_a_file_that_is_no_database(path):
    path.write_text("a text, long enough to be read as the header of a database file. " * 40)
    with pytest.raises(LedgerUnavailable, match="not a SQLite database") as caught:
        open_ledger(f"sqlite:///{path}")
    one_line(caught, path)
    assert path.read_text().startswith("a text")


def test_a_damaged_file(path):
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        for i in range(300):
            spend(ledger, i)
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = b"\xa5" * (len(damaged) - 4096)
    path.write_bytes(damaged)
    with pytest.raises(LedgerUnavailable, match="damaged; restore a backup") as caught:
        open_ledger(f"sqlite:///{path}")
    one_line(caught, path)


def test_a_read_only_database_keeps_the_hold(path, ledger):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold(5))
    connection = ledger._database.writing._connection
    connection.execute("PRAGMA query_only = ON")  # gives SQLite's own error, also where the tests run as root
    for verb in (lambda: ledger.reserve(hold(6)), lambda: ledger.settle(held.key, Settlement(cost_nanos=4))):
        with pytest.raises(LedgerUnavailable, match="read-only") as caught:
            verb()
        one_line(caught, path)
    assert counters(ledger, CUSTOMER) == {("acme",): (0, 5, 0)}
    connection.execute("PRAGMA query_only = OFF")
    ledger.settle(held.key, Settlement(cost_nanos=4))
    assert ledger.check() == []


@contextmanager
def as_nobody(*paths):
    """Own the paths as an ordinary user: root, as whom the tests may run, may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    for each in paths:
        os.chown(each, NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_or_folder_without_permission(what):
    with TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        path = Path(folder, "ledger.db")
        open_ledger(f"sqlite:///{path}").close()
        target = path if what == "file" else path.parent
        target.chmod(0o444 if what == "file" else 0o555)
        with as_nobody(path, folder):
            assert not os.access(target, os.W_OK, effective_ids=True)
            with pytest.raises(LedgerUnavailable, match=r"read-only|cannot be opened") as caught:
                spend(open_ledger(f"sqlite:///{path}"), 5)
        target.chmod(0o755)
        one_line(caught, path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no POSIX permissions here")
def test_a_folder_in_a_closed_one():
    with TemporaryDirectory() as closed:
        path = Path(closed, "folder", "ledger.db")
        path.parent.mkdir()
        Path(closed).chmod(0)
        with as_nobody(closed), pytest.raises(LedgerUnavailable, match="cannot be opened") as caught:
            open_ledger(f"sqlite:///{path}")
        Path(closed).chmod(0o700)
        one_line(caught, path)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file sizes here")
def test_a_limit_on_file_sizes_loses_nothing(path, ledger):
    import resource

    held = ledger.reserve(hold(5))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    done = 0
    try:
        with pytest.raises(
            LedgerUnavailable, match="reading or writing it failed; look at the disk"
        ) as caught:
            for _ in range(1000):
                spend(ledger, 1)
                done += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(caught, path)
    ledger.settle(held.key, Settlement(cost_nanos=4))
    (total,) = ledger.sums(())
    assert total.cost_nanos - 4 == done > 0
    assert ledger.check() == []


def test_a_full_disk_loses_nothing(path, ledger):
    ledger.declare([CUSTOMER])
    held = ledger.reserve(hold(5))
    with ledger._database.writing as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    done = 0
    with pytest.raises(LedgerUnavailable, match="disk is full; free some space") as caught:
        for _ in range(1000):
            spend(ledger, 1, Attribution({"customer": "x" * 100, "run": new_key()}))
            done += 1
    one_line(caught, path)
    huge = Settlement(cost_nanos=4, detail={"note": "x" * 100_000})
    with pytest.raises(LedgerUnavailable, match="disk is full"):
        ledger.settle(held.key, huge)
    assert counters(ledger, CUSTOMER)[("acme",)] == (0, 5, 0)
    assert ledger.check() == []
    assert len(list(ledger.records())) == done
    with ledger._database.writing as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    ledger.settle(held.key, huge)
    assert counters(ledger, CUSTOMER)[("acme",)] == (4, 0, 0)
    assert ledger.check() == []


def test_a_file_that_another_process_keeps_locked(path, monkeypatch):
    monkeypatch.setattr(_database, "_PATIENCE_S", 0.05)
    with closing(open_ledger(f"sqlite:///{path}")) as ledger, closing(sqlite3.connect(path)) as other:
        held = ledger.reserve(hold(5))
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match="another process has kept it locked") as caught:
            ledger.settle(held.key, Settlement(cost_nanos=4))
        one_line(caught, path)
        assert ledger.sums(())[0].calls == 0  # reading goes on
        other.execute("ROLLBACK")
        assert ledger.settle(held.key, Settlement(cost_nanos=4)).cost_nanos == 4


def test_an_interrupted_verb_leaves_nothing_behind(ledger, monkeypatch):
    ledger.declare([CUSTOMER])

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ledger._counters, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ledger.reserve(hold(5))
    assert ledger.holds() == []
    spend(ledger, 5)
    assert ledger.check() == []


def test_a_counter_that_would_overflow_fails_instead_of_turning_into_a_float(ledger):
    ledger.declare([CUSTOMER])
    for _ in range(9):
        spend(ledger, 10**18)
    with pytest.raises(LedgerUnavailable, match="CHECK constraint"):
        ledger.reserve(hold(9 * 10**18, attribution=ACME)) and spend(ledger, 10**18)
    assert counters(ledger, CUSTOMER)[("acme",)][0] == 9 * 10**18


# --- for those who read the file with SQL


def test_the_journal_is_append_only(path, ledger):
    spend(ledger, 5)
    with closing(sqlite3.connect(path)) as connection:
        for statement in ("UPDATE journal SET cost_nanos = 0", "DELETE FROM journal"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_the_store_itself_refuses_to_count_a_call_twice(path, ledger):
    spend(ledger, 5)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TEMP TABLE copy AS SELECT * FROM journal")
        connection.execute("UPDATE copy SET seq = seq + 1")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute("INSERT INTO journal SELECT * FROM copy")


def test_views_show_dollars_and_iso_times_and_add_up(path, ledger):
    spend(ledger, 2 * USD)
    spend(ledger, USD // 4, Attribution({"customer": "beta"}, (("agent", "boss"), ("tool", "search"))))
    lost = ledger.reserve(hold(USD // 2, attribution=Attribution({"feature": "mail"})))
    ledger.presume(older_than_us=ledger.now_us() + 1)
    ledger.settle(lost.key, Settlement(cost_nanos=USD // 8))
    ledger.refuse(hold(1, attribution=Attribution({"team": "refused"})), {})
    with closing(sqlite3.connect(path)) as connection:
        for dimension in ("team", "feature", "customer", "agent", "tool", "model"):
            query = f"SELECT {dimension}, sum(usd), sum(calls) FROM spend_by_{dimension} GROUP BY 1"  # noqa: S608
            rows = connection.execute(query)
            report = [(s.values[0], s.cost_nanos / USD, s.calls) for s in ledger.sums((dimension,))]
            assert sorted(rows) == sorted(report)
        [(hour, usd)] = connection.execute("SELECT hour, usd FROM spend_by_team WHERE team = 'growth'")
        assert (Decimal(str(usd)), hour[10], hour[-7:]) == (Decimal(2), "T", ":00:00Z")
        assert connection.execute("SELECT sum(usd), sum(calls) FROM spend_by_day").fetchone() == (2.375, 3)
        ledger.declare([CUSTOMER])
        spent = dict(connection.execute("SELECT value, spent_usd FROM spend_by_meter"))
        assert spent == {'["acme"]': 2.0, '["beta"]': 0.25, '["(unattributed)"]': 0.125}


def test_dimensions_of_any_name_are_in_the_view(path, ledger):
    spend(ledger, USD, Attribution({"cost_center": "cc-42"}))
    spend(ledger, USD)
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT value, usd FROM spend_by_dimension WHERE dimension = 'cost_center'")
        assert dict(rows) == {"cc-42": 1.0, "(unattributed)": 1.0}


def test_check_reports_an_hourly_sum_that_is_wrong(ledger):
    spend(ledger, 5)
    with ledger._database.writing as connection:
        connection.execute("UPDATE hourly_spend SET cost_nanos = 6 WHERE dimension = 'team'")
    [line] = ledger.check()
    assert "hourly spend ('team'" in line


# --- paths


def test_a_relative_path_stays_the_same_file_when_the_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with closing(open_ledger("sqlite:///name.db")) as ledger:
        assert ledger.url == "sqlite:///name.db"
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        spend(ledger, 5)
    assert (tmp_path / "name.db").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_caps_survive_a_reopen(path):
    cap = Cap("0.01", per="customer").meter("UTC")
    for expected in (Held, Refused):
        with closing(open_ledger(f"sqlite:///{path}")) as ledger:
            assert isinstance(ledger.reserve(hold(10_000_000, (cap, 10_000_000))), expected)


def test_a_refused_reserve_is_forgotten_when_it_is_tried_again_a_day_later(path):
    daily = Meter((), (), "day")
    clock = Clock(1_763_900_000_000_000)
    with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as ledger:
        request = hold(USD, (daily, USD))
        blocking = ledger.reserve(hold(USD, (daily, USD)))
        assert isinstance(ledger.reserve(request), Refused)
        clock.now += 86_400_000_000
        with closing(open_ledger(f"sqlite:///{path}", clock=clock)) as other:
            assert isinstance(other.reserve(request), Held)
        ledger.settle(request.key, Settlement(cost_nanos=3))
        assert counters(ledger, daily) == {(): (3, 0, 0)}
        ledger.settle(blocking.key, Settlement(cost_nanos=4))
        assert counters(ledger, daily) == {(): (3, 0, 0)}
        assert ledger.check() == []
