"""Processes that share a file and disagree on a limit: each enforces its own, and people see it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maestro_core import Cap, CapExceeded, Maestro
from maestro_core.cli import app
from maestro_core.types import Call

OTHER = """
import sys
from maestro_core import Cap, Maestro
from maestro_core.types import Call
maestro = Maestro(ledger=sys.argv[1], caps=[Cap(sys.argv[2], every="day"), Cap("70")])
call = Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=4000)
maestro.settle(maestro.reserve(call), None)
print("ready", flush=True)
sys.stdin.readline()
maestro.close()
"""


def call():
    return Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=4000)


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/maestro.db"


def other_process(url, limit):
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, url, limit],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def shell(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("ends", ["closed", "killed"])
def test_each_enforces_its_own_limit_and_sees_the_others_while_they_live(url, ends):
    with (
        other_process(url, "30") as process,
        closing(Maestro(ledger=url, caps=[Cap("0.012", every="day")])) as maestro,
    ):
        with pytest.raises(CapExceeded, match=r"> \$0.012"):
            maestro.reserve(
                call()
            )  # the other process spent too much for this one's limit, and not for its own
        [status] = maestro.status()
        assert (status.limit, status.other_limits) == (Decimal("0.012"), (Decimal(30),))
        if ends == "closed":
            process.communicate("\n")
        else:
            process.send_signal(signal.SIGKILL)
            process.wait()
        [status] = maestro.status()
        assert status.other_limits == ()


def test_editing_reordering_and_renaming_caps_keeps_what_was_counted(url, tmp_path):
    with closing(
        Maestro(ledger=url, caps=[Cap("1", per=("team", "customer")), Cap("2", every="day")])
    ) as maestro:
        record = maestro.settle(maestro.reserve(call()), None)
    edited = [Cap("5", every="day", alert_at=0.5), Cap("7", per=("customer", "team"))]
    with closing(Maestro(ledger=url, caps=edited)) as maestro:
        found = {(status.limit, status.spent) for status in maestro.status()}
        assert found == {(7, record.cost), (5, record.cost)}
        maestro.settle(maestro.reserve(call()), None)
        assert all(status.spent == 2 * record.cost and not status.other_limits for status in maestro.status())
        assert len(maestro.ledger.meters()) == 2
        assert maestro.ledger.check() == []


def test_two_in_one_process_see_each_other_and_the_same_limit_is_no_news(url):
    caps = [Cap("1", every="day")]
    with closing(Maestro(ledger=url, caps=caps)) as one, closing(Maestro(ledger=url, caps=caps)) as two:
        one.settle(one.reserve(call()), None)
        two.settle(two.reserve(call()), None)
        assert [status.other_limits for status in one.status()] == [()]
        with closing(Maestro(ledger=url, caps=[Cap("2", every="day")])) as three:
            three.settle(three.reserve(call()), None)
            assert [status.other_limits for status in one.status()] == [(2,)]
            assert [status.other_limits for status in three.status()] == [(1,)]
        assert [status.other_limits for status in one.status()] == [()]


def test_commands_show_the_disagreement_and_enforce_nothing(url, tmp_path):
    (tmp_path / "maestro.toml").write_text('[[caps]]\nlimit = "20"\nevery = "day"\n', encoding="utf-8")
    with other_process(url, "30") as process:
        assert "other processes enforce $30.00 instead of $20.00 every day" in shell("caps").stderr
        [status] = json.loads(shell("caps", "--json").stdout)
        assert (status["limit"], status["other_limits"]) == ("20", ["30"])
        found = json.loads(shell("doctor", "--json").stdout)
        limits = {each["meter"]: each["limits"] for each in found["ledger"]["limits"]}
        assert limits == {"all": ["70"], "all every day UTC": ["20", "30"]}
        assert found["notes"][-1].startswith(
            "processes enforce different limits on all every day UTC: 20, 30 dollars"
        )
        process.communicate("\n")
    assert json.loads(shell("doctor", "--json").stdout)["ledger"]["limits"] == []
    assert "other_limits" not in json.loads(shell("caps", "--json").stdout)[0]
