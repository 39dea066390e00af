"""`maestro doctor` and `maestro price`: what they find out without a call being made."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maestro_core import Maestro, Usage, attribution
from maestro_core.cli import app
from maestro_core.types import Call

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The current folder, whose maestro.toml and maestro.db the commands read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def asked(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def ledger(place):
    """One settled call and one open call under a meter."""
    (place / "maestro.toml").write_text(
        '[[caps]]\nlimit = "20"\nper = "customer"\nevery = "day"\n', encoding="utf-8"
    )
    maestro = Maestro()
    for run_id in ("run-1", "run-2"):
        call = Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=300)
        with attribution(run=run_id, customer="acme"):
            reservation = maestro.reserve(call)
        if run_id == "run-1":
            maestro.settle(reservation, Usage(input_tokens=10, output_tokens=20))
    maestro.close()
    return place / "maestro.db"


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_doctor_shows_settings_and_where_they_came_from(place, ledger, monkeypatch):
    monkeypatch.setenv("MAESTRO_WAIT_S", "7")
    monkeypatch.setenv("MAESTRO_ATTRIBUTION", "team=growth")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@localhost:4318")
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["settings"]["wait_s"] == {"value": 7.0, "origin": "MAESTRO_WAIT_S"}
    assert found["settings"]["caps"] == {"value": ["$20.00 per customer every day"], "origin": "maestro.toml"}
    assert found["settings"]["ledger"] == {"value": "sqlite:///maestro.db", "origin": "default"}
    assert found["attribution"] == {"team": "growth"}
    assert found["ledger"]["differences"] == []
    (hold,) = found["ledger"]["holds"]
    assert (hold["state"], hold["run"], hold["model"]) == ("held", "run-2", "gpt-5-mini")
    assert found["extras"]["langchain_core"]
    assert found["price_book"].startswith("genai-prices ")
    assert found["otlp_endpoint"] == "http://***@localhost:4318"
    assert "secret" not in result.output
    lines = run("doctor").stdout.splitlines()
    assert lines[-1] == "all is well"
    assert [line for line in lines if line != line.rstrip()] == []


def test_doctor_changes_nothing(place, ledger):
    (place / "maestro.toml").write_text(
        'hold_ttl_s = 0.001\n[[caps]]\nlimit = "2"\nper = "feature"\n', encoding="utf-8"
    )
    found = asked("doctor")["ledger"]
    assert found["meters"] == ["customer every day UTC"]  # the new cap's meter is not declared
    assert [hold["state"] for hold in found["holds"]] == ["held"]  # nor is the old hold presumed spent


def test_doctor_finds_counters_that_differ_from_the_journal(ledger):
    with closing(sqlite3.connect(ledger)) as database, database:
        database.execute("UPDATE buckets SET spent_nanos = spent_nanos + 1")
    found = asked("doctor", code=1)
    assert found["ledger"]["state"] == "damaged"
    assert len(found["problems"]) == len(found["ledger"]["differences"]) > 0
    assert "problem: the ledger's counters differ" in run("doctor", code=1).stdout


def test_doctor_reconciles_counters_with_the_journal_and_says_what_was_wrong(ledger):
    with closing(sqlite3.connect(ledger)) as database, database:
        rows = database.execute("SELECT * FROM journal").fetchall()
        database.execute("UPDATE buckets SET spent_nanos = spent_nanos + 1")
        database.execute("UPDATE hourly_spend SET calls = calls + 1 WHERE dimension = ''")
    assert "note: maestro doctor --reconcile puts" in run("doctor", code=1).stdout
    result = run("doctor", "--reconcile").stdout
    assert result.count("reconciled: ") == 2
    assert "reconciled: customer every day UTC ['acme'] from" in result
    found = asked("doctor", "--reconcile")["ledger"]
    assert (found["reconciled"], found["differences"]) == ([], [])
    with closing(sqlite3.connect(ledger)) as database:
        *_, (kind, detail) = database.execute("SELECT kind, detail FROM journal ORDER BY seq")
        assert [*database.execute("SELECT * FROM journal ORDER BY seq")][:-1] == rows
    assert (kind, json.loads(detail)["differences"]) == ("repaired", 2)


def test_a_ledger_that_cannot_reconcile_says_so(place, monkeypatch):
    monkeypatch.setenv("MAESTRO_LEDGER", "memory:")
    assert "MAESTRO_LEDGER=sqlite:///maestro.db" in run("doctor", "--reconcile", code=1).stdout


def test_doctor_names_every_problem_at_once(ledger, monkeypatch):
    ledger.write_bytes(b"not a database, " * 512)
    monkeypatch.setenv("MAESTRO_ATTRIBUTION", "team")
    found = asked("doctor", code=1)
    assert found["ledger"]["state"] == "not reachable"
    assert len(found["problems"]) == 2
    assert "maestro.db" in found["problems"][1]


def test_doctor_without_valid_settings_shows_the_rest(monkeypatch):
    monkeypatch.setenv("MAESTRO_LEDGR", "sqlite:///x.db")
    found = asked("doctor", code=1)
    assert "MAESTRO_LEDGR" in found["problems"][0]
    assert found["versions"]["maestro"]


def test_doctor_lists_plugins_and_those_that_fail_to_load(place, monkeypatch):
    (place / "ours.py").write_text("import maestro_core\n", encoding="utf-8")
    info = place / "ours-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[maestro]\ngood = ours\nbad = ours.gone\n", encoding="utf-8")
    monkeypatch.syspath_prepend(place)
    found = asked("doctor", code=1)
    assert found["plugins"] == ["good"]
    assert found["problems"] == ["plugin bad was not loaded; the line above says why"]


def test_doctor_creates_no_ledger_and_checks_that_one_could_be(place, monkeypatch):
    assert asked("doctor")["ledger"]["state"].startswith("none yet")
    monkeypatch.setenv("MAESTRO_LEDGER", f"sqlite:///{place}/missing/maestro.db")
    assert "not a writable folder" in asked("doctor", code=1)["problems"][0]
    monkeypatch.setenv("MAESTRO_LEDGER", f"sqlite:///{'x' * 300}")
    assert "File name too long" in asked("doctor", code=1)["problems"][0]
    assert list(place.iterdir()) == []


def test_the_price_book_has_an_age_and_what_is_unpriced_is_named(place):
    maestro = Maestro()
    call = Call(provider="openai", model="in-house", input="hello", max_output_tokens=300)
    maestro.settle(maestro.reserve(call), Usage(input_tokens=10, output_tokens=20))
    maestro.close()
    found = asked("doctor")
    assert date(2026, 10, 1) < date.fromisoformat(found["newest_price"]) <= datetime.now(UTC).date()
    assert found["ledger"]["unpriced"] == [{"provider": "openai", "model": "in-house", "calls": 1}]
    assert any("openai:in-house" in note for note in found["notes"])
    assert found["ok"]
    assert f"newest price of {found['newest_price']}" in run("doctor").stdout


# -- presumed spend ----------------------------------------------------------------------------------------------------


def left_behind():
    """Make an open call in a process that ends."""
    code = """
from maestro_core import Maestro
from maestro_core.types import Call
call = Call(provider="openai", model="gpt-5-mini", input="hello", max_output_tokens=300)
print(Maestro().reserve(call).key)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return answer.stdout.strip()


def test_doctor_shows_what_an_ended_process_left_behind(ledger):
    key = left_behind()
    found = asked("doctor")
    assert {hold["key"]: hold["state"] for hold in found["ledger"]["holds"]}[key] == "presumed"
    assert sorted(hold["state"] for hold in found["ledger"]["holds"]) == ["held", "presumed"]  # we live
    assert any("calls presumed spent" in note for note in found["notes"])
    text = run("doctor").stdout
    assert key in text
    assert "--correct KEY --cost DOLLARS" in text


def test_a_person_corrects_what_was_presumed_and_again(ledger):
    key = left_behind()
    assert f"corrected: call {key} cost $0.12" in run("doctor", "--correct", key, "--cost", "0.12").stdout
    assert booked(ledger, key) == (("presumed", "corrected"), 120_000_000)
    found = asked("doctor", "--correct", key, "--cost", "$0.10")
    assert found["corrected"] == {"key": key, "cost": "0.1"}
    kinds, nanos = booked(ledger, key)
    assert (kinds, nanos) == (("presumed", "corrected", "corrected"), 100_000_000)
    assert found["ledger"]["differences"] == []
    assert key not in {hold["key"] for hold in found["ledger"]["holds"]}


def test_a_person_corrects_what_was_settled(ledger):
    with closing(sqlite3.connect(ledger)) as database:
        [(key,)] = database.execute("SELECT key FROM journal WHERE kind = 'settled'")
    run("doctor", "--correct", key, "--cost", "0")
    assert booked(ledger, key) == (("settled", "corrected"), 0)


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--correct", "KEY"), 2, "go together"),
        (("--cost", "1"), 2, "go together"),
        (("--correct", "KEY", "--cost", "much"), 2, "not an amount of US dollars"),
        (("--correct", "KEY", "--cost", "-1"), 2, "cost"),
        (("--correct", "KEY", "--cost", "1"), 1, "was not settled"),
    ],
)
def test_a_correction_that_makes_no_sense_changes_nothing(ledger, arguments, code, why):
    before = ledger.read_bytes()
    result = run("doctor", *arguments, code=code)
    assert why in result.stderr
    assert ledger.read_bytes() == before


def test_a_call_that_is_still_open_is_not_corrected(ledger):
    with closing(sqlite3.connect(ledger)) as database:
        [(key,)] = database.execute("SELECT key FROM holds")
    result = run("doctor", "--correct", key, "--cost", "1", code=1)
    assert f"call {key} is still open in process {os.getpid()}" in result.stderr


def booked(path, key):
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT kind, cost_nanos FROM journal WHERE key = ? ORDER BY seq", (key,)
        ).fetchall()
    return tuple(kind for kind, _ in rows), sum(cost for _, cost in rows)


# -- price -------------------------------------------------------------------------------------------------------------


def test_price_explains_itself_line_by_line():
    found = asked("price", "openai:gpt-5-mini", "--input", "1000", "--cached", "400", "--output", "200")
    lines = {line["kind"]: line for line in found["lines"]}
    assert lines["input"] == {"kind": "input", "count": 600, "usd_per_million": "0.25", "cost": "0.00015"}
    assert lines["cache_read"]["cost"] == "0.00001"
    assert lines["output"]["usd_per_million"] == "2"
    assert found["total"] == "0.00056"
    assert found["unpriced"] == []
    assert found["price_id"].startswith("openai:gpt-5-mini")
    assert found["price_book"].startswith("genai-prices ")
    text = run("price", "openai:gpt-5-mini", "--input", "1000", "--cached", "400", "--output", "200").stdout
    assert re.search(r"^output +200 +\$2\.00 +\$0\.0004$", text, re.MULTILINE)
    assert re.search(r"^total +\$0\.00056$", text, re.MULTILINE)
    assert found["price_book"] in text


def test_price_without_counts_shows_the_rates():
    assert {line["kind"]: line["count"] for line in asked("price", "openai:gpt-5-mini")["lines"]} == {
        "input": 1_000,
        "output": 1_000,
    }


def test_price_of_a_kind_without_a_rate_is_a_lower_bound_and_says_so():
    # An embedding model has no price for output.
    arguments = ("price", "openai:text-embedding-3-small", "--input", "1000", "--output", "10")
    found = asked(*arguments)
    assert found["unpriced"] == ["output"]
    assert "the total is too low: output" in run(*arguments).stdout


def test_price_of_an_unknown_model_names_the_closest():
    result = run("price", "openai:gpt-5-mimi", code=1)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(r"gpt-5-mini\b", line)
