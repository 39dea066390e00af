"""`maestro reconcile`: what providers export against the ledger."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clocks import Clock
from typer.testing import CliRunner

from maestro_core.cli import app
from maestro_core.clock import to_micros
from maestro_core.ledger import open_ledger
from maestro_core.types import Attribution, Hold, Settlement

USD = 1_000_000_000
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder whose ledger has three days: 20 to 22 November 2026."""
    monkeypatch.chdir(tmp_path)
    clock = Clock(to_micros(NOON))
    ledger = open_ledger("sqlite:///maestro.db", clock=clock)
    spends = [
        (NOON, "openai", "gpt-5-mini", 2 * USD, 1_000),
        (NOON.replace(hour=23, minute=59), "openai", "gpt-5-mini-2025-08-07", USD, 500),
        (NOON.replace(day=21, hour=0), "openai", "gpt-5-mini", 4 * USD, 2_000),
        (NOON.replace(day=21), "anthropic", "claude-haiku-4-5", 3 * USD, 700),
        (NOON.replace(day=22), "openai", "gpt-5.4", 8 * USD, 4_000),
    ]
    for number, (at, provider, model, cost, tokens) in enumerate(spends):
        clock.now = to_micros(at)
        ledger.reserve(Hold(f"{number}", cost, provider, model, Attribution()))
        usage = {"input_tokens": tokens - 100, "output_tokens": 100}
        ledger.settle(f"{number}", Settlement(cost_nanos=cost, usage=usage))
    ledger.close()
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["reconcile", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def reconcile(place, text, *arguments, provider="openai"):
    file = place / "export.csv"
    file.write_text(text, encoding="utf-8")
    return json.loads(run(file, "--provider", provider, "--json", *arguments).stdout)


GENERIC = """date,model,cost_usd
2026-11-20,gpt-5-mini,3.00
2026-11-21,gpt-5-mini,5
2026-11-22,gpt-5.4,8
"""
TOTAL = {"ledger": "15", "provider": "16", "difference": "1", "unexplained": 0.0625}


def test_each_day_and_model_is_compared(place):
    found = reconcile(place, GENERIC)
    assert (found["format"], found["unit"], found["provider"]) == ("generic", "cost", "openai")
    assert (found["since"], found["until"]) == ("2026-11-20", "2026-11-22")
    assert [(r["day"], r["model"], r["ledger"], r["provider"], r["difference"], r["unexplained"]) for r in found["rows"]] == [
        ("2026-11-20", "gpt-5-mini", "3", "3", "0", 0.0),  # dated and undated names are one model
        ("2026-11-21", "gpt-5-mini", "4", "5", "1", 0.2),
        ("2026-11-22", "gpt-5.4", "8", "8", "0", 0.0),
    ]  # fmt: skip
    assert found["total"] == TOTAL


def test_differences_do_not_cancel_out(place):
    found = reconcile(place, "date,model,cost_usd\n2026-11-20,gpt-5-mini,4\n2026-11-21,gpt-5-mini,3\n")
    assert found["total"] == {"ledger": "7", "provider": "7", "difference": "0", "unexplained": 0.285714}


def test_what_only_one_side_has_is_a_row(place):
    found = reconcile(place, "date,model,cost_usd\n2026-11-20,gpt-9,1\n2026-11-22,gpt-9,0\n")
    rows = {(r["day"], r["model"]): (r["ledger"], r["provider"], r["unexplained"]) for r in found["rows"]}
    assert rows == {
        ("2026-11-20", "gpt-9"): ("0", "1", 1.0),
        ("2026-11-20", "gpt-5-mini"): ("3", "0", 1.0),
        ("2026-11-21", "gpt-5-mini"): ("4", "0", 1.0),
        ("2026-11-22", "gpt-5.4"): ("8", "0", 1.0),
        ("2026-11-22", "gpt-9"): ("0", "0", 0.0),
    }


EXPORTS = {
    "OpenAI cost": (
        "openai",
        (
            "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id\n"
            '1763596800,1763683200,x,x,1,usd,"gpt-5-mini-2025-08-07, input",p\n'
            '1795132800,1795219200,x,x,1.25,usd,"gpt-5-mini-2025-08-07, input",p\n'
            '1795132800,1795219200,x,x,1.75,USD,"gpt-5-mini-2025-08-07, output",p\n'
        ),
        "cost",
        ("3", "3"),
    ),
    "OpenAI usage": (
        "openai",
        (
            "start_time,end_time,project_id,num_model_requests,model,input_tokens,output_tokens,input_cached_tokens\n"
            "1795132800,1795132860,p,1,gpt-5-mini-2025-08-07,900,100,0\n"
            "1795132860,1795132920,p,1,gpt-5-mini-2025-08-07,400,100,100\n"
        ),
        "tokens",
        (1_500, 1_500),
    ),
    "Anthropic cost": (
        "anthropic",
        (
            "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,cost_type\n"
            "2026-11-21,Claude Haiku 4.5,Default,k,message,≤ 200k,input_no_cache,1.00,token\n"
            "2026-11-21,Claude Haiku 4.5,Default,k,message,≤ 200k,output,2.00,token\n"
        ),
        "cost",
        ("3", "3"),
    ),
    "Anthropic usage": (
        "anthropic",
        (
            "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
            "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
            "usage_output_tokens,web_search_count\n"
            '2026-11-21,claude-haiku-4-5-20251001,k,Default,standard,≤ 200k,100,200,0,"300",100,0\n'
        ),
        "tokens",
        (700, 700),
    ),
    "generic": ("openai", "﻿date,model,cost_usd,input_tokens,output_tokens\n2026-11-20,gpt-5-mini,$3,1,1\n", "cost", ("3", "3")),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTS)
def test_every_format_is_known_by_its_header(place, name):
    provider, text, unit, (ours, theirs) = EXPORTS[name]
    found = reconcile(place, text, "--since", "2026-11-20T00:00:00Z", provider=provider)
    assert (found["format"], found["unit"]) == (name, unit)
    assert (found["total"]["ledger"], found["total"]["provider"], found["total"]["unexplained"]) == (
        ours, theirs, 0.0,
    )  # fmt: skip
    assert len(found["rows"]) == 1


def test_columns_may_stand_in_any_order_and_between_others(place):
    found = reconcile(place, "note,cost_usd,model,date\n,3,gpt-5-mini,2026-11-20T23:59:59-00:00\n\n,,,\n")
    assert found["total"]["provider"] == "3"


def test_only_whole_days_of_the_period_are_compared(place):
    def days(*arguments):
        return [row["day"] for row in reconcile(place, GENERIC, *arguments)["rows"]]

    assert days("--since", "2026-11-21T00:00:00Z") == ["2026-11-21", "2026-11-22"]
    assert days("--since", "2026-11-20T00:00:01Z") == ["2026-11-21", "2026-11-22"]
    assert days("--until", "2026-11-21T00:00:00Z") == ["2026-11-20"]
    assert days("--until", "2026-11-21T23:00:00Z") == ["2026-11-20"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no header that is known; Anthropic usage: usage_date_utc,"),
        ("day,model,usd\n", "generic: date,model,cost_usd,input_tokens,output_tokens"),
        ("date,model,cost_usd\n", "no line"),
        ("date,model,cost_usd\nyesterday,m,1\n", "line 2: 'yesterday' is no day"),
        ("date,model,cost_usd\n2026-11-20,m,1\n2026-11-20,m,cheap\n", "line 3: 'cheap' is no amount"),
        ("date,model,cost_usd\n2026-11-20,m,nan\n", "line 2: 'nan' is no amount"),
        ("date,model,cost_usd\n0001-01-01,m,1\n2026-11-20,m,1\n", "at most ten years"),
        ("start_time,model,input_tokens,output_tokens\n1795132800,m,many,1\n", "'many' is no number"),
        ("start_time,amount_value,amount_currency,line_item\n1795132800,1,eur,m\n", "only US dollars"),
    ],
)
def test_what_cannot_be_read_is_one_line(place, text, says):
    file = place / "export.csv"
    file.write_text(text, encoding="utf-8")
    error = run(file, "--provider", "openai", code=1).stderr
    assert says in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_or_not_text_is_one_line(place):
    error = run("absent.csv", "--provider", "openai", code=2).stderr
    assert "absent.csv; export usage or cost as CSV from openai's console" in error
    (place / "image.csv").write_bytes(b"\xff\xfe\x00\x01")
    assert run("image.csv", "--provider", "openai", code=1).stderr.count("\n") == 1


def test_the_table(place):
    (place / "export.csv").write_text(GENERIC, encoding="utf-8")
    shown = [line.split() for line in run("export.csv", "--provider", "openai").stdout.splitlines()]
    assert shown == [
        ["day", "model", "ledger", "provider", "difference", "unexplained"],
        ["2026-11-20", "gpt-5-mini", "$3.00", "$3.00", "$0.00", "0.0%"],
        ["2026-11-21", "gpt-5-mini", "$4.00", "$5.00", "$1.00", "20.0%"],
        ["2026-11-22", "gpt-5.4", "$8.00", "$8.00", "$0.00", "0.0%"],
        ["total", "$15.00", "$16.00", "$1.00", "6.2%"],
    ]


def test_a_long_file_is_read_line_by_line(place):
    lines = (f"2026-11-20,model-{n % 7},0.001\n" for n in range(50_000))
    with (place / "export.csv").open("w", encoding="utf-8") as file:
        file.write("date,model,cost_usd\n")
        file.writelines(lines)
    found = json.loads(run("export.csv", "--provider", "openai", "--json").stdout)
    assert found["total"]["provider"] == "50"


@pytest.mark.parametrize(
    "command", ["reprice --since all --dry-run", "reconcile export.csv --provider openai"]
)
def test_json_has_the_documented_shape(place, command):
    (place / "maestro.toml").write_text('[[prices]]\nprovider = "openai"\ndiscount = 0.5\n', encoding="utf-8")
    (place / "export.csv").write_text(GENERIC, encoding="utf-8")
    name, *arguments = command.split()
    found = json.loads(CliRunner().invoke(app, [name, *arguments, "--json"]).stdout)
    text = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.partition(f"## `maestro {name}`")[2]
    documented = json.loads(re.search(r"```json\n(.*?)```", section, re.DOTALL)[1])

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(part) for key, part in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value)

    found["since"] = found["since"] or ""  # nobody can say when "all" began
    assert shape(found) == shape(documented)
