"""The examples run as they are, and would notice if they were wrong."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from decimal import Decimal
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[1]
REPLAY = ROOT / "examples/02_replay_production_trace.py"
# Every warning is an error, but for langsmith's on Python 3.14, as in pyproject.toml.
WARNINGS = (
    "error,ignore:'asyncio.iscoroutinefunction' is:DeprecationWarning:langsmith._internal._beta_decorator"
)


def run(example, *arguments, cwd):
    return subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": WARNINGS, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_replay_of_a_production_trace_reconciles(tmp_path):
    done = run(REPLAY, "--limit", "500", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ledger \$[\d.]+ reconciles with the bill \$[\d.]+, to the nano-dollar", done.stdout)
    assert "caps passed: none" in done.stdout
    admitted, refused = (
        re.search(r"(\d+) of 500 requests admitted", done.stdout)[1],
        re.findall(r"(\d+) as", done.stdout),
    )
    assert int(admitted) + sum(map(int, refused)) == 500
    assert refused, "the chat team's cap bites before the end"
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_a_second_replay_into_the_same_ledger_reconciles_by_itself(tmp_path):
    again = ("--limit", "60", "--ledger", f"sqlite:///{tmp_path}/replay.db")
    assert run(REPLAY, *again, cwd=tmp_path).returncode == 0
    second = run(REPLAY, *again, cwd=tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "reconciles" in second.stdout


@pytest.fixture
def example():
    spec = spec_from_file_location("replay_production_trace", REPLAY)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_replay_notices_a_bill_that_differs_by_a_nano_dollar(example, monkeypatch):
    requests = list(example.read("azure_llm_trace_conv.csv.gz", "chat"))[:20]
    told = io.StringIO()
    assert example.replay(requests, "memory:", Console(file=told))
    own_bill = example.Replay.settle_until

    def off_by_one(self, now):
        own_bill(self, now)
        if now.year == 9999:
            self.bill += example.Fraction(1, 10**9)

    monkeypatch.setattr(example.Replay, "settle_until", off_by_one)
    assert not example.replay(requests, "memory:", Console(file=told))
    assert "DIFFERS FROM" in told.getvalue()


def test_the_trace_is_whole(example):
    rows = {team: sum(1 for _ in example.read(file, team)) for file, team in example.TEAMS.items()}
    assert rows == {"coding": 8_819, "chat": 19_366}


def test_routing_by_difficulty_saves_what_it_promises(tmp_path):
    done = run(ROOT / "examples/03_route_by_difficulty.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+)% less", done.stdout)[1]) >= 40
    assert "below quality 0.9, or easy ones above it: 0" in done.stdout
    assert "agree to the nano-dollar" in done.stdout
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_the_llamaindex_example_reconciles(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/04_llamaindex.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},  # LlamaIndex warns of itself
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1  the agent was stopped: cap exceeded (spent): run=" in done.stdout
    assert "4  gpt-4.1-nano was down; gpt-4.1-mini answered" in done.stdout
    assert "agree to the nano-dollar" in done.stdout


def test_the_demo_agrees_with_the_bill_and_its_ledger_can_be_asked_as_it_says(tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", "from maestro_core.cli import main; main()"]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    shown = subprocess.run([*command, "demo"], check=True, **options).stdout
    assert "They agree to the nano-dollar." in shown
    ask = shown.splitlines()[-1].removeprefix("The ledger stays; ask it: ")
    ask = ask.replace(" maestro ", f" {shlex.join(command)} ") + " --json"
    answer = subprocess.run(["sh", "-c", ask], check=True, **options).stdout  # noqa: S607 - whichever shell there is
    assert f"by Maestro's ledger:  ${Decimal(json.loads(answer)['total']):.9f}" in shown
