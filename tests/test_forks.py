"""What a fork finds and leaves behind: free locks on both sides, and a child that knows that it is one."""

from __future__ import annotations

import gc
import os
import signal
import threading
from contextlib import closing

import pytest

from maestro_core import forks
from maestro_core.forks import fork_safe_lock, tell_child
from maestro_core.ledger import open_ledger
from maestro_core.types import new_key

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(work):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            signal.alarm(20)
            code = int(work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_waits_for_whoever_is_inside_a_lock():
    lock, inside, leave = fork_safe_lock(), threading.Event(), threading.Event()

    def work():
        with lock:
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(20)
    threading.Timer(0.1, leave.set).start()
    assert in_child(lambda: not lock.acquire(timeout=5)) == 0
    thread.join()
    assert not lock.locked()


def test_a_child_makes_other_keys_than_its_parent(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    read, write = os.pipe()
    assert in_child(lambda: os.write(write, new_key().encode()) != 26) == 0
    assert os.read(read, 26).decode() != new_key()
    os.close(read)
    os.close(write)


def test_a_fork_in_the_middle_of_a_long_report_leaves_the_child_a_ledger(tmp_path, monkeypatch):
    monkeypatch.setattr(forks, "_PATIENCE_S", 0.05)
    with closing(open_ledger(f"sqlite:///{tmp_path}/maestro.db")) as ledger:
        inside, leave = threading.Event(), threading.Event()

        def report():
            with ledger._database.reading:
                inside.set()
                leave.wait(20)

        thread = threading.Thread(target=report)
        thread.start()
        inside.wait(20)
        try:
            assert in_child(lambda: ledger.holds() != []) == 0
        finally:
            leave.set()
            thread.join()
        assert ledger.holds() == []


def test_only_a_child_is_told_and_only_who_is_there():
    class Told:
        def __init__(self):
            self.times = 0
            tell_child(self.tell)

        def tell(self):
            self.times += 1

    told, gone = Told(), Told()
    del gone
    gc.collect()
    assert in_child(lambda: told.times - 1) == 0
    assert told.times == 0


def test_a_server_that_tells_python_only_afterwards_does_no_harm():
    """As uWSGI: it forks in C, and runs nothing before."""
    lock = fork_safe_lock()
    forks._after_in_child()
    assert not lock.locked()
    assert in_child(lock.locked) == 0
