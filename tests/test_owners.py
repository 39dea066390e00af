"""Who holds money, how others see that a process has ended, and what a fork may do with what it inherits."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from maestro_core import Cap, CapExceeded, Maestro, Usage, attribution
from maestro_core.errors import ReservationClosed
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Call, Hold, Meter, Settlement, new_key

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="owners are POSIX locks")

ROOT = Path(__file__).parents[1]
CUSTOMER = Meter(("customer",))
CALL = {"provider": "openai", "model": "gpt-5-mini", "input": "hello", "max_output_tokens": 100}
USAGE = Usage(input_tokens=10, output_tokens=20)
COST = USAGE.input_tokens * 250 + USAGE.output_tokens * 2_000

HOLDER = """
import sys
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Settlement, new_key
ledger = open_ledger(sys.argv[1])
held = ledger.reserve(Hold(new_key(), int(sys.argv[2]), "openai", "gpt-5", Attribution({"customer": "acme"})))
print(held.key, flush=True)
for line in sys.stdin:
    ledger.settle(held.key, Settlement(cost_nanos=int(line)))
    print("settled", flush=True)
"""

LOOKER = """
import sys
from maestro_core.ledger import open_ledger
for record in open_ledger(sys.argv[1]).presume():
    print(record.key)
"""


def hold(amount=5):
    return Hold(new_key(), amount, "openai", "gpt-5", Attribution({"customer": "acme"}))


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/maestro.db"


@pytest.fixture
def ledger(url):
    with closing(open_ledger(url)) as ledger:
        ledger.declare([CUSTOMER])
        yield ledger


def python(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


@contextmanager
def holder(url, amount=5):
    """Another process that holds money; what is written to it settles its call."""
    with python(HOLDER, url, amount) as process:
        try:
            process.key = process.stdout.readline().strip()
            yield process
        finally:
            process.kill()


def lost(url):
    """Return what a process that comes anew finds lost, and presumes."""
    with python(LOOKER, url) as process:
        found = process.communicate(timeout=30)[0].split()
        assert process.returncode == 0
    return found


def states(ledger):
    return {each.key: each.state for each in ledger.holds()}


def end(process):
    process.kill()
    process.wait(30)


def in_child(work):
    """Run something in a fork; return what it returns (0 or 1), or 9 if it raised."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            signal.alarm(30)
            code = int(work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- who is alive


def test_what_a_killed_process_holds_is_presumed_spent(url, ledger):
    with holder(url) as other:
        assert ledger.presume() == []
        end(other)
        [record] = ledger.presume()
    assert (record.key, record.kind, record.cost_nanos) == (other.key, "presumed", 5)
    [bucket] = ledger.buckets(CUSTOMER)
    assert (bucket.spent, bucket.held, bucket.presumed) == (0, 0, 5)
    assert ledger.presume() == []
    assert ledger.check() == []


def test_what_an_ended_process_left_open_is_presumed_spent(url, ledger):
    with holder(url) as other:
        other.communicate(timeout=30)
        assert other.returncode == 0
    assert [record.key for record in ledger.presume()] == [other.key]


def test_a_stopped_process_is_alive(url, ledger):
    with holder(url) as other:
        other.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        assert ledger.presume() == []
        other.send_signal(signal.SIGCONT)
        other.stdin.write("3\n")
        other.stdin.flush()
        assert other.stdout.readline() == "settled\n"
    assert ledger.sums(())[0].cost_nanos == 3


def test_a_late_settle_posts_the_truth(url, ledger):
    with holder(url) as other:
        ledger.presume(older_than_us=ledger.now_us() + 1)
        assert states(ledger) == {other.key: "presumed"}
        other.stdin.write("3\n")
        other.stdin.flush()
        other.stdout.readline()
    assert [(r.kind, r.cost_nanos) for r in ledger.records()] == [("presumed", 5), ("corrected", -2)]
    assert ledger.check() == []


def test_many_lost_holds_are_presumed_in_short_transactions(url, ledger, monkeypatch):
    monkeypatch.setattr("maestro_core.ledger.sqlite._STEP", 3)
    script = HOLDER.replace("held = ", "held = [").replace(
        "))\nprint(held.key", ")) for _ in range(10)][0]\nprint(held.key"
    )
    with python(script, url, 5) as other:
        other.stdout.readline()
        end(other)
    assert len(ledger.presume()) == 10
    assert ledger.check() == []


def test_all_ledgers_of_a_process_are_one_owner(url, ledger, tmp_path):
    first = ledger.reserve(hold())
    (tmp_path / "link.db").symlink_to(tmp_path / "maestro.db")
    for name in ("maestro.db", "link.db"):
        with closing(open_ledger(f"sqlite:///{tmp_path}/{name}")) as other:
            second = other.reserve(hold())
            assert len({each.owner for each in other.holds()}) == 1
            assert other.presume() == []
            other.settle(second.key, Settlement(cost_nanos=5))
    # Closing a copy of the file would have dropped the lock.
    assert lost(url) == []
    assert states(ledger) == {first.key: "held"}


def test_a_process_owns_what_it_left_open_until_it_ends(url):
    with closing(open_ledger(url)) as first:
        held = first.reserve(hold())
    assert lost(url) == []
    with closing(open_ledger(url)) as second:
        assert second.presume() == []
        second.settle(held.key, Settlement(cost_nanos=3))
        assert in_child(lambda: second.close() or 0) == 0


def test_no_descriptor_is_left_open(url):
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(5):
        with closing(open_ledger(url)) as ledger:
            ledger.settle(ledger.reserve(hold()).key, Settlement(cost_nanos=5))
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_owners_that_leave_no_lock_are_never_thought_dead(url, ledger):
    """As on Windows, and of versions that had none: `hold_ttl_s` alone decides."""
    held = ledger.reserve(hold())
    with ledger._database.writing as connection:
        connection.execute("UPDATE holds SET owner = '1-abcdef01'")
    assert ledger.presume() == []
    assert [r.key for r in ledger.presume(older_than_us=ledger.now_us() + 1)] == [held.key]


def test_without_the_owners_file_the_living_are_counted_too_and_post_the_truth(url, ledger, tmp_path):
    held = ledger.reserve(hold())
    (tmp_path / "maestro.db-owners").unlink()
    assert lost(url) == [held.key]
    ledger.settle(held.key, Settlement(cost_nanos=2))
    assert ledger.sums(())[0].cost_nanos == 2
    assert ledger.check() == []


def test_an_owner_whose_file_was_lost_is_seen_again_with_its_next_call(url, ledger, tmp_path):
    ledger.reserve(hold())
    (tmp_path / "maestro.db-owners").unlink()
    held = ledger.reserve(hold())
    assert held.key not in lost(url)


def test_an_owner_whose_file_was_opened_by_others_is_seen_again_with_its_next_call(url, ledger, tmp_path):
    first = ledger.reserve(hold())
    (
        tmp_path / "maestro.db-owners"
    ).read_bytes()  # as a backup does; closing it drops the locks of this process
    second = ledger.reserve(hold())
    assert lost(url) == []
    assert set(states(ledger)) == {first.key, second.key}


def test_the_owners_file_has_the_permissions_of_the_ledger(tmp_path):
    path = tmp_path / "maestro.db"
    path.touch()
    path.chmod(0o640)
    with closing(open_ledger(f"sqlite:///{path}")) as ledger:
        ledger.reserve(hold())
    assert (tmp_path / "maestro.db-owners").stat().st_mode & 0o777 == 0o640


# --- who waits for the dead


def test_a_waiter_is_told_as_soon_as_the_holder_is_dead(url, make_maestro):
    maestro = make_maestro(ledger=url, caps=[Cap("0.001", per="customer")], wait_s=600)
    refused = []

    def wait():
        with attribution(customer="acme"), pytest.raises(CapExceeded) as caught:
            maestro.doors.reserve(Call(**CALL), fits=False)
        refused.append(caught.value)

    with holder(url, 999_999) as other:
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not maestro.admission.line._waiters:
            assert waiter.is_alive()
            time.sleep(0.01)
        end(other)
        waiter.join(60)
    [error] = refused
    assert (error.reason, error.presumed, error.held) == ("spent", Decimal("0.000999999"), 0)
    assert "presumed $0.001" in str(error)
    assert maestro.status()[0].presumed == Decimal("0.000999999")


def test_a_maestro_that_is_opened_finds_what_is_lost(url, make_maestro, caplog):
    with holder(url, 999_999) as other:
        end(other)
    maestro = make_maestro(ledger=url, caps=[Cap("1", per="customer")])
    assert other.key in caplog.text
    [status] = maestro.status()
    assert (status.held, status.presumed) == (0, Decimal("0.000999999"))
    assert maestro.report(since="all").total == Decimal("0.000999999")


# --- forks


@pytest.fixture(params=["sqlite", "memory"])
def maestro(request, url, make_maestro):
    return make_maestro(
        ledger=url if request.param == "sqlite" else "memory:", caps=[Cap("1", per="customer")]
    )


def test_a_fork_does_not_end_what_its_parent_holds(maestro):
    reservation = maestro.reserve(Call(**CALL))

    def child():
        for end_it in (
            lambda: maestro.settle(reservation, USAGE),
            lambda: maestro.release(reservation, "not sent"),
        ):
            with pytest.raises(ReservationClosed, match=f"belongs to process {os.getppid()}"):
                end_it()
        if maestro.ledger.url != "memory:":
            maestro.presume([reservation.key])
            assert states(maestro.ledger) == {reservation.key: "held"}
        return 0

    assert in_child(child) == 0
    assert states(maestro.ledger) == {reservation.key: "held"}
    assert maestro.settle(reservation, USAGE).cost_nanos == COST
    assert maestro.ledger.check() == []


def test_a_fork_that_exits_inside_its_parents_calls_closes_none(maestro):
    offered, parent = maestro.reserve(Call(**CALL)), os.getpid()
    try:
        with maestro.call(**CALL) as call, maestro.doors.offer(offered):
            pid = os.fork()
            if pid == 0:
                sys.exit(0)  # leaves all the blocks around
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert set(states(maestro.ledger).values()) == {"held"}
            assert call.settle(USAGE).cost_nanos == COST
    finally:
        if os.getpid() != parent:
            os._exit(0 if sys.exc_info()[0] is SystemExit else 9)
    assert maestro.ledger.holds() == []


def test_the_end_of_a_fork_leaves_its_parent_alive(url, ledger):
    held = ledger.reserve(hold())

    def child():
        mine = ledger.reserve(hold())
        ledger.presume()
        ledger.settle(mine.key, Settlement(cost_nanos=1))
        ledger.close()
        return 0

    assert in_child(child) == 0
    assert lost(url) == []
    ledger.settle(held.key, Settlement(cost_nanos=5))


def test_a_killed_fork_is_dead_although_its_parent_lives(url, ledger):
    mine = ledger.reserve(hold())
    assert in_child(lambda: bool(ledger.reserve(hold())) and os.kill(os.getpid(), signal.SIGKILL)) == -9
    [record] = ledger.presume()
    assert record.key != mine.key
    assert states(ledger) == {mine.key: "held", record.key: "presumed"}


def test_a_parent_that_dies_first_is_seen_by_its_fork(url, ledger):
    """As when a server's master is killed and its workers go on."""
    inside, outside = os.pipe()

    def master():
        held = ledger.reserve(hold())
        if os.fork() == 0:
            deadline = time.monotonic() + 20
            while not (found := ledger.presume()) and time.monotonic() < deadline:
                time.sleep(0.02)
            os.write(outside, b"ok" if [r.key for r in found] == [held.key] else b"no")
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(master) == -9
    os.close(outside)
    with os.fdopen(inside, "rb") as said:
        assert said.read() == b"ok"
    assert ledger.check() == []


def test_a_fork_waits_for_money_of_its_parent_and_does_not_think_it_its_own(url, make_maestro):
    maestro = make_maestro(ledger=url, caps=[Cap("0.0003", per="customer")], wait_s=0.3)
    reservation = maestro.reserve(Call(**CALL))
    assert len(maestro.admission.line._open) == 1

    def child():
        assert maestro.admission.line._open == {}
        with pytest.raises(CapExceeded) as caught:
            maestro.doors.reserve(Call(**CALL), fits=False)
        return caught.value.reason != "held"

    assert in_child(child) == 0
    maestro.settle(reservation, USAGE)


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_forks_amid_busy_threads_find_no_lock_taken(url, make_maestro, kind):
    maestro = make_maestro(ledger=url if kind == "sqlite" else "memory:", caps=[Cap("100", per="customer")])
    stop = threading.Event()

    def work():
        while not stop.is_set():
            maestro.settle(maestro.doors.reserve(Call(**CALL)), USAGE)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [
            in_child(lambda: maestro.settle(maestro.reserve(Call(**CALL)), USAGE) is None) for _ in range(12)
        ]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 12
    assert maestro.ledger.check() == []
    assert maestro.ledger.holds() == []


def _pooled(number):
    maestro = Maestro.default()
    with attribution(customer="acme"):
        return maestro.settle(maestro.reserve(Call(**CALL)), USAGE).cost_nanos


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pools_of_processes_share_the_ledger(url, monkeypatch, tmp_path, method):
    """As celery's prefork pool: the parent has used its Maestro, and has a call open, when the workers start."""
    monkeypatch.setenv("MAESTRO_LEDGER", url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    maestro = Maestro.default()
    try:
        reservation = maestro.reserve(Call(**CALL))
        with multiprocessing.get_context(method).Pool(2) as pool:
            costs = pool.map(_pooled, range(8))
        assert costs == [COST] * 8
        assert states(maestro.ledger) == {reservation.key: "held"}
        maestro.settle(reservation, USAGE)
        assert maestro.report(since="all").total == Decimal(9 * COST) / 10**9
        assert maestro.ledger.check() == []
    finally:
        maestro.close()
