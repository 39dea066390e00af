"""A disk that fills, a file that goes, a process that stops, a clock that steps: nothing passes the cap, one clear line.

Each with real calls to a provider that keeps the true bill.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from maestro_core import Cap, attribution
from maestro_core.errors import LedgerUnavailable
from maestro_core.ledger import _database, open_ledger
from maestro_core.testing import Reply
from maestro_core.types import Attribution, Call, Held, Hold, Meter, Refused, new_key
from maestro_langchain import MaestroMiddleware

ROOT = Path(__file__).parents[1]
CALL = {"provider": "openai", "model": "gpt-5-mini", "input": "x" * 2_000, "max_output_tokens": 100}
COST = Decimal("0.00045")  # of every call: 1,000 tokens in, 100 out
DAILY = Meter((), (), "day")
DAY_US = 86_400_000_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "maestro.db"


@pytest.fixture
def maestro(path, make_maestro):
    return make_maestro(ledger=f"sqlite:///{path}", caps=[Cap("1", per="customer")])


def send(provider):
    body = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{provider.openai_url}/chat/completions", json=body).json()


def spend(maestro, provider):
    held = maestro.reserve(Call(**CALL))
    return maestro.settle(held, send(provider))


def refused(maestro, path, *parts):
    """No call is admitted, and one line says why."""
    with pytest.raises(LedgerUnavailable) as caught:
        maestro.reserve(Call(**CALL))
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


# --- the file goes


def test_a_deleted_file_admits_nothing_also_when_another_process_makes_a_new_one(maestro, provider, path):
    spend(maestro, provider)
    open_call = maestro.reserve(Call(**CALL))
    for each in path.parent.glob("maestro.db*"):
        each.unlink()
    refused(maestro, path, "was deleted or replaced while it was in use", "restart this program")
    assert not path.exists()  # it was not made anew, empty
    with closing(open_ledger(f"sqlite:///{path}")) as another:
        refused(maestro, path, "was deleted or replaced")
        assert another.holds() == []
        # The call was made, and its answer is good; what it cost waits for the ledger to come back.
        assert maestro.settle(open_call, send(provider)).cost == COST
        assert list(another.records()) == []
        assert another.check() == []
    assert len(provider.requests) == 2


def test_a_file_that_is_put_back_goes_on(maestro, provider, path):
    spend(maestro, provider)
    held = maestro.reserve(Call(**CALL))
    path.rename(path.with_name("away.db"))
    refused(maestro, path, "put it back")
    maestro.settle(held, send(provider))
    path.with_name("away.db").rename(path)
    spend(maestro, provider)
    assert maestro.report(since="all").total == provider.bill == 3 * COST
    assert maestro.ledger.check() == []


def test_a_fork_does_not_make_a_deleted_file_anew(maestro, path):
    path.unlink()
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            refused(maestro, path, "was deleted or replaced")
            code = int(path.exists())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- the disk fills


def test_a_full_disk_admits_nothing_and_loses_nothing(maestro, provider, path):
    held = maestro.reserve(Call(**CALL))
    database = maestro.ledger._database

    def limit(pages):
        with database.writing as connection:
            return connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    limit(1)  # SQLite takes it as: as many as there are
    with (
        attribution(customer="x" * 128, note="y" * 128),
        pytest.raises(LedgerUnavailable, match="disk is full"),
    ):
        for _ in range(1_000):
            unsent = maestro.reserve(Call(**CALL))
            maestro.release(unsent, "not sent")
    answer = send(provider)
    with attribution(customer="z" * 128):
        while True:  # until not even a settlement fits
            try:
                maestro.ledger.refuse(
                    Hold(new_key(), 1, "openai", "gpt-5-mini", Attribution()), {"why": "x" * 4_000}
                )
            except LedgerUnavailable:
                break
    maestro.settle(held, answer)
    limit(1_000_000)
    spend(maestro, provider)  # which also writes down what waited
    maestro.release(unsent, "not sent")
    assert maestro.report(since="all").total == provider.bill == 2 * COST
    assert maestro.ledger.holds() == []
    assert maestro.ledger.check() == []


# --- a process stops


STOPPED = """
import os, signal, sys
from pathlib import Path
from maestro_core.ledger._database import Database
database = Database(Path(sys.argv[1]))
with database.writing:
    print("in the middle", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
print("on", flush=True)
"""


def test_a_process_that_is_stopped_in_the_middle_of_a_transaction(maestro, provider, path, monkeypatch):
    monkeypatch.setattr(_database, "_PATIENCE_S", 0.1)
    held = maestro.reserve(Call(**CALL))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout.readline() == "in the middle\n"
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        refused(maestro, path, "another process has kept it locked", "look for a stuck process")
        assert maestro.settle(held, send(provider)).cost == COST  # kept until the ledger can take it
        other.send_signal(signal.SIGCONT)
        assert other.stdout.readline() == "on\n"
    spend(maestro, provider)
    assert maestro.report(since="all").total == provider.bill == 2 * COST
    assert maestro.ledger.holds() == []


# --- the clock steps


def test_a_clock_that_steps_back_a_day_opens_no_new_window(path):
    clock = _Clock()
    url = f"sqlite:///{path}"
    with closing(open_ledger(url, clock=clock)) as ledger:
        assert isinstance(ledger.reserve(_hold()), Held)
        clock.now -= DAY_US
        assert isinstance(ledger.reserve(_hold()), Refused)
    with closing(open_ledger(url, clock=clock)) as ledger:  # nor after a restart
        assert isinstance(ledger.reserve(_hold()), Refused)


class _Clock:
    now = 1_763_900_000_000_000

    def now_us(self):
        return self.now


def _hold():
    return Hold(new_key(), 10, "openai", "gpt-5-mini", Attribution(), ((DAILY, 10),))


# --- a fork in the middle of a call


def test_a_tool_that_forks_inside_an_agents_run(maestro, provider, openai, path):
    """As a tool that starts a pool of processes: the child pays its own call, and ends nothing of its parent's."""

    @tool
    def research() -> str:
        """Research in a process of its own."""
        pid = os.fork()
        if pid == 0:
            code = 9
            try:
                code = int(spend(maestro, provider).cost != COST)
            finally:
                os._exit(code)
        return f"child: {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"

    def answer(request):
        called = request.tools and not request.tool_results
        return Reply(
            text="fine",
            tool_calls=[("research", {})] if called else (),
            input_tokens=1_000,
            output_tokens=100,
        )

    provider.reply = answer
    agent = create_agent(openai(), [research], middleware=[MaestroMiddleware(maestro)])
    with attribution(customer="acme"):
        result = agent.invoke({"messages": [("user", "go")]})
    assert "child: 0" in [message.content for message in result["messages"]]
    assert maestro.report("customer", since="all").rows[0].calls == 3
    assert maestro.report(since="all").total == provider.bill == 3 * COST
    assert maestro.ledger.holds() == []
