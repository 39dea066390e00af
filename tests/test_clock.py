"""A ledger's time never goes back by itself; a person may set it back, if the machine's clock was wrong once."""

import json
import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from maestro_core import Cap, Maestro, Usage
from maestro_core.cli import app
from maestro_core.clock import SystemClock, to_micros
from maestro_core.ledger import open_ledger
from maestro_core.testing import FakeClock
from maestro_core.types import Attribution, Call, Held, Hold, Meter, Refused, Settlement, new_key

DAY, WEEK = Meter(every="day"), Meter(every="week")


class LooseClock:
    """A machine's clock that may be set."""

    def __init__(self):
        self.now = FakeClock().now

    def now_us(self):
        return to_micros(self.now)


@pytest.fixture
def clock():
    return LooseClock()


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/maestro.db"


def hold(amount, meter=DAY, limit=100):
    return Hold(new_key(), amount, "openai", "m", Attribution({"team": "a"}), ((meter, limit),))


def spend(ledger, amount, meter=DAY):
    held = ledger.reserve(hold(amount, meter))
    ledger.settle(held.key, Settlement(cost_nanos=amount))
    return held


def test_a_person_sets_the_time_back_and_every_process_follows(url, clock):
    with closing(open_ledger(url, clock=clock)) as one, closing(open_ledger(url, clock=clock)) as other:
        spend(one, 60)
        clock.now += timedelta(days=3)
        spend(one, 100)
        spend(other, 0)
        clock.now -= timedelta(days=3)
        assert one.now_us() == other.now_us() == clock.now_us() + 3 * 86_400_000_000
        assert isinstance(other.reserve(hold(1)), Refused), "the day that is to come is spent"
        assert one.correct_clock() == 3 * 86_400_000_000
        assert one.now_us() == other.now_us() == clock.now_us()
        assert isinstance(other.reserve(hold(41)), Refused), "today's 60 count on"
        assert isinstance(other.reserve(hold(40)), Held)
        assert one.check() == []
        assert one.correct_clock() == 0


def test_a_cap_declared_while_the_clock_was_ahead_counts_today(url, clock):
    with closing(open_ledger(url, clock=clock)) as one, closing(open_ledger(url, clock=clock)) as other:
        spend(one, 60)
        clock.now += timedelta(days=30)
        spend(other, 5, WEEK)
        clock.now -= timedelta(days=30)
        one.correct_clock()
        assert isinstance(other.reserve(hold(41, WEEK)), Refused)
        assert isinstance(other.reserve(hold(40, WEEK)), Held)
        assert one.check() == []
        (row,) = [record for record in one.records() if record.kind == "repaired"]
        assert row.detail["clock_was_us"] - row.detail["clock_is_us"] == 30 * 86_400_000_000


def test_doctor_says_how_far_the_ledger_is_ahead_and_sets_it_back(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    maestro = Maestro(ledger=url, caps=[Cap("1", every="day")])
    call = Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=300)
    maestro.settle(maestro.reserve(call), Usage(input_tokens=10, output_tokens=20))
    maestro.close()
    monkeypatch.setenv("MAESTRO_LEDGER", url)
    assert doctor(code=0)["ledger"]["clock_ahead_s"] == 0
    ahead_us = SystemClock().now_us() + 3 * 86_400_000_000
    with closing(sqlite3.connect(tmp_path / "maestro.db")) as file, file:
        file.execute("UPDATE store SET clock_us = ?", (ahead_us,))
    found = doctor(code=1)
    assert 3 * 86_400 - 60 < found["ledger"]["clock_ahead_s"] <= 3 * 86_400
    (problem,) = found["problems"]
    assert "ahead of this machine's" in problem
    assert "maestro doctor --correct-clock" in problem
    (line,) = doctor("--correct-clock", code=0)["ledger"]["reconciled"]
    assert "ahead; it is" in line
    assert doctor(code=0)["problems"] == []


def doctor(*options, code):
    result = CliRunner().invoke(app, ["doctor", "--json", *options])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)
