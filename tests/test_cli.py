"""The command line over a real SQLite ledger, in this process and through the entry point."""

import json
import os
import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from maestro_core import CapExceeded, Maestro, Usage, attribution
from maestro_core.cli import app
from maestro_core.types import Attribution, Call, Cap

ROOT = Path(__file__).parents[1]
# What the script that installers make out of `maestro_core.cli:main` runs.
ENTRY_POINT = "import sys; from maestro_core.cli import main; sys.exit(main())"
CALL_USD = Decimal("0.00065")  # 1,000 tokens in at $0.25 and 200 out at $2 per million
MARKUP = "[bold red]sales[/bold red]"
ESCAPES = "evil\x1b[31m\nteam"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The current folder, whose maestro.toml and maestro.db the commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path


@pytest.fixture
def ledger(place):
    """Six settled calls of four teams, one open call, and one refusal in run-1."""
    maestro = Maestro(caps=[Cap("0.10", per="run")])
    path = (("agent", "researcher"), ("tool", "search"))
    for customer in ("acme", "acme", "globex"):
        spend(maestro, path, team="growth", customer=customer, run="run-1")
    spend(maestro, team=MARKUP, run="run-2")
    spend(maestro, team=ESCAPES, run="run-3")
    spend(maestro, run="run-4")
    with attribution(team="growth", customer="globex", run="run-1"), pytest.raises(CapExceeded):
        maestro.reserve(a_call(path, max_output_tokens=100_000))
    with attribution(run="run-5", customer="initech"):
        maestro.reserve(a_call())
    maestro.close()
    return place / "maestro.db"


def a_call(path=(), max_output_tokens=300):
    return Call(provider="openai", model="gpt-5-mini", input="x" * 2_000, max_output_tokens=max_output_tokens,
                attribution=Attribution({}, path))  # fmt: skip


def spend(maestro, path=(), **who):
    with attribution(**who):
        reservation = maestro.reserve(a_call(path))
    maestro.settle(reservation, Usage(input_tokens=1_000, output_tokens=200))


def declare(place, *caps):
    (place / "maestro.toml").write_text("\n".join(f"[[caps]]\n{cap}" for cap in caps), encoding="utf-8")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def asked(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


def environment(**changes):
    # The commands run in a folder of their own; this one finds Maestro even where it is not installed.
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def process(*arguments, code=ENTRY_POINT, **changes):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(**changes), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def on_terminal(*arguments, columns=80, **changes):
    """Run a command on a pseudo-terminal and return what it draws there."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", ENTRY_POINT, *arguments],
        env=environment(TERM="xterm-256color", COLUMNS=str(columns), **changes),
        stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    drawn = b""
    while True:
        try:
            chunk = os.read(leader, 65_536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        drawn += chunk
    os.close(leader)
    assert running.wait(60) == 0, drawn
    return drawn.decode().replace("\r\n", "\n")


def one_line_error(result, *parts):
    """The command failed with one line on standard error, which says what is wrong."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0]


# -- report ------------------------------------------------------------------------------------------------------------


def test_report_adds_up_and_shows_what_nobody_owns(ledger):
    found = asked("report", "--by", "team")
    assert set(found) == {"since", "until", "total", "rows"}
    assert Decimal(found["total"]) == 6 * CALL_USD
    assert sum(Decimal(row["cost"]) for row in found["rows"]) == 6 * CALL_USD
    costs = {row["key"]["team"]: Decimal(row["cost"]) for row in found["rows"]}
    assert costs["growth"] == 3 * CALL_USD
    assert costs["(unattributed)"] == costs[MARKUP] == costs[ESCAPES] == CALL_USD
    growth = found["rows"][0]
    assert (growth["calls"], growth["input_tokens"], growth["output_tokens"]) == (3, 3_000, 600)
    assert (growth["estimated"], growth["unpriced_calls"]) == ("0", 0)


def test_report_by_two_dimensions_of_some_calls(ledger):
    found = asked("report", "--by", "customer, model", "--where", "team=growth", "--since", "all")
    assert found["since"] is None
    assert [row["key"] for row in found["rows"]] == [
        {"customer": "acme", "model": "gpt-5-mini"},
        {"customer": "globex", "model": "gpt-5-mini"},
    ]
    nobody = asked("report", "--where", "team=(unattributed)")
    assert Decimal(nobody["total"]) == CALL_USD
    narrower = asked("report", "--where", "team=growth", "--where", "customer=acme")
    assert Decimal(narrower["total"]) == 2 * CALL_USD


def test_report_of_a_period_without_calls_is_zero(ledger):
    found = asked("report", "--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00+01:00")
    assert found["since"] == "2020-01-01T00:00:00+00:00"
    assert found["until"] == "2020-01-01T23:00:00+00:00"
    assert (found["total"], found["rows"]) == ("0", [])
    assert (
        "$0.00" in run("report", "--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z").stdout
    )


def test_a_piped_report_is_plain_text_with_values_as_they_are(ledger):
    piped = process("report", FORCE_COLOR="", COLUMNS="30")
    assert (piped.returncode, piped.stderr) == (0, "")
    header, *rows, total = piped.stdout.splitlines()
    assert header.split() == ["team", "cost", "calls", "input", "output"]
    assert len(rows) == 4
    assert any(row.startswith(MARKUP) for row in rows)
    assert any(row.startswith(r"evil\x1b[31m\nteam ") for row in rows)
    name, cost, *counts = total.split()
    assert (name, counts) == ("total", ["6", "6,000", "1,200"])
    assert Decimal(cost.removeprefix("$")) == 6 * CALL_USD
    assert len({len(line) for line in (header, *rows, total)}) == 1  # the last column is flush right
    assert "\x1b" not in piped.stdout


def test_a_terminal_gets_a_table_of_80_columns(place, ledger):
    maestro = Maestro()
    spend(maestro, team="a very long name " * 7, customer="z" * 128)
    maestro.close()
    drawn = on_terminal("report", "--by", "team,customer")
    assert "\x1b[1m" in drawn
    lines = re.sub(r"\x1b\[[0-9;]*m", "", drawn).splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b[31m" not in drawn
    text = "".join(lines)
    assert "$0.00455" in text
    assert text.count("z") == 128  # folded, not cut


def test_a_terminal_too_narrow_for_the_numbers_gets_them_whole(ledger):
    drawn = on_terminal("report", columns=20, NO_COLOR="1")
    assert "$0.0039" in drawn
    assert "6,000" in drawn
    assert "…" not in drawn


def test_no_color_writes_no_escapes(ledger):
    for command in (["report"], ["caps"], ["show", "run-1"], ["doctor"], ["price", "openai:gpt-5-mini"]):
        assert "\x1b" not in on_terminal(*command, NO_COLOR="1")


# -- caps --------------------------------------------------------------------------------------------------------------


def test_caps_shows_every_bucket_the_nearest_to_its_limit_first(place, ledger):
    declare(place, 'limit = "0.002"\nper = "customer"', 'limit = "5"\nevery = "month"')
    found = asked("caps")
    acme = next(each for each in found if each["bucket"] == "customer=acme")
    assert acme == {
        "cap": "$0.002 per customer",
        "bucket": "customer=acme",
        "limit": "0.002",
        "spent": "0.0013",
        "held": "0",
        "presumed": "0",
        "headroom": "0.0007",
        "resets_at": None,
    }
    initech = next(each for each in found if each["bucket"] == "customer=initech")
    assert Decimal(initech["held"]) > 0
    shares = [Decimal(each["headroom"]) / Decimal(each["limit"]) for each in found]
    assert shares == sorted(shares)
    month = next(each for each in found if each["bucket"] == "every month")
    assert month["resets_at"].endswith("+00:00")
    assert "customer=acme" in run("caps").stdout


@pytest.mark.parametrize(("limit", "code"), [("0.0013", 3), ("0.001", 3), ("1", 0)])
def test_caps_check_says_by_its_exit_code_whether_a_cap_is_breached(place, ledger, limit, code):
    declare(place, f'limit = "{limit}"\nper = "customer"\nwhere = {{ team = "growth" }}')
    breached = run("caps", "--check", code=code).stderr.splitlines()
    assert breached == ["breached: customer=acme where team=growth"] * (code == 3)
    assert asked("caps", "--check", code=code)[0]["limit"] == limit
    run("caps")  # without --check it only shows


def test_caps_without_any_says_so(place, ledger):
    result = run("caps", "--check", "--json")
    assert json.loads(result.stdout) == []
    assert "no caps in the settings" in result.stderr


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_tells_a_run_as_a_tree(ledger):
    root = asked("show", "run-1")
    assert (root["kind"], root["name"], root["calls"]) == ("run", "run-1", 3)
    assert Decimal(root["total"]) == 3 * CALL_USD
    assert root["cost"] == "0"
    (agent,) = root["children"]
    (tool,) = agent["children"]
    (model,) = tool["children"]
    assert [node["kind"] for node in (agent, tool, model)] == ["agent", "tool", "model"]
    assert Decimal(tool["cost"]) == Decimal(model["total"]) == 3 * CALL_USD
    assert len(tool["refusals"]) == 1
    assert "cap exceeded (ceiling)" in tool["refusals"][0]
    drawn = on_terminal("show", "run-1")
    assert "researcher" in drawn
    assert "refused: cap exceeded" in drawn
    assert "    tool search  $0.00195  (3 calls)\n" in run("show", "run-1").stdout


# -- what users get wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["report"], ["caps"], ["show", "run-1"]])
def test_reading_a_ledger_that_is_not_there_is_an_error_and_creates_none(place, command):
    one_line_error(run(*command, code=1), f"no ledger at {place / 'maestro.db'}", "MAESTRO_LEDGER")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"MAESTRO_LEDGR": "memory:"}, "unknown setting MAESTRO_LEDGR"),
        ({"MAESTRO_WAIT_S": "soon"}, "wait_s"),
        ({"MAESTRO_LEDGER": "mongodb://here"}, 'ledger "mongodb://here" is not known'),
        ({"MAESTRO_LEDGER": "here\x1b[31m\nand there"}, r"here\x1b[31m and there"),
        ({"MAESTRO_LEDGER": "memory:"}, "only by the process"),
        ({"MAESTRO_LEDGER": f"sqlite:///{'x' * 300}"}, "File name too long"),
    ],
)
def test_wrong_settings_are_one_line(ledger, monkeypatch, environment, part):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    one_line_error(run("report", code=1), part)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["report", "--by", "te am"], "dimension"),
        (["show", "run-9"], "no call of run 'run-9'"),
    ],
)
def test_values_that_mean_nothing_are_one_line(ledger, arguments, part):
    one_line_error(run(*arguments, code=1), part)


def test_a_corrupt_ledger_is_one_line(ledger):
    ledger.write_bytes(b"not a database, " * 512)
    one_line_error(run("report", code=1), "maestro.db")


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "--where", "team"],
        ["report", "--where", "=growth"],
        ["report", "--where", "team=a", "--where", "team=b"],
        ["report", "--by", ","],
        ["report", "--sins", "24h"],
        ["report", "--since", "yesterday"],
        ["report", "--since", "2026-11-23T00:00:00"],
        ["report", "--until", "soon\x1b[31m"],
        ["alerts", "--since", "yesterday"],
        ["reprice", "--since", "yesterday"],
        ["archive", "--before", "yesterday"],
        ["archive", "--before", "2026-02-30"],
        ["reconcile", "absent.csv", "--provider", "openai"],
        ["demo", "--ledger", "mongodb://here"],
        ["price", "gpt-5-mini"],
        ["price", "openai:gpt-5-mini", "--input", "-1"],
        ["price", "openai:gpt-5-mini", "--input", "1", "--cached", "2"],
        ["show"],
        ["spend"],
    ],
)
def test_a_command_called_wrongly_exits_with_2(arguments):
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert "Error: " in result.stderr
    assert "\x1b" not in result.stderr


# -- the entry point ---------------------------------------------------------------------------------------------------


def test_the_entry_point_exits_with_its_code(place, ledger):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["maestro"] == "maestro_core.cli:main"
    declare(place, 'limit = "0.001"\nper = "customer"')
    found = process("report", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert Decimal(json.loads(found.stdout)["total"]) == 6 * CALL_USD
    assert process("caps", "--check").returncode == 3
    assert process("report", "--where", "team").returncode == 2
    failed = process("show", "run-9")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.count("\n") == 1


def test_names_that_the_encoding_lacks_are_spelled_out(place, ledger):
    maestro = Maestro()
    spend(maestro, team="Müller 会社")
    maestro.close()
    piped = process("report", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (piped.returncode, piped.stderr) == (0, "")
    assert r"M\xfcller \u4f1a\u793e" in piped.stdout


def test_help_is_quick_because_it_imports_nothing_heavy():
    heavy = ["genai_prices", "opentelemetry", "pluggy", "pydantic", "pydantic_settings", "rich", "sqlite3"]
    code = (
        "import sys; from maestro_core.cli import main; main(['--help']); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = process(code=code)
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "report" in ran.stdout


def test_without_a_command_there_is_help_and_version_is_the_package_s():
    assert run().stdout == run("--help").stdout
    assert re.fullmatch(r"maestro \d+\.\d+\.\d+\S*\n", run("--version").stdout)


def test_demo_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "maestro_langchain.demo", raising=False)
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks", None)
    one_line_error(run("demo", code=1), 'pip install "maestro-finops[demo]"')


# -- the documentation -------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_command(app).commands


def section(name):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    match = re.search(rf"^## `maestro {name}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"docs/cli.md has no section for maestro {name}"
    return match[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_documented(name):
    command = COMMANDS[name]
    assert command.help
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    for option in options:
        assert re.search(rf"^\| `{option}`( [A-Z]+)? \|", section(name), re.MULTILINE)
    assert all(parameter.help for parameter in command.params)
    assert command.help.splitlines()[0].rstrip(".") in section(name)


@pytest.mark.parametrize(
    "arguments",
    [["report"], ["caps"], ["show", "run-1"], ["price", "openai:gpt-5-mini"], ["doctor"]],
    ids=lambda arguments: arguments[0],
)
def test_json_has_the_documented_shape(place, ledger, arguments):
    declare(place, 'limit = "20"\nper = "customer"')
    documented = json.loads(re.search(r"```json\n(.*?)```", section(arguments[0]), re.DOTALL)[1])
    assert_same_shape(
        asked(*arguments), documented, open_keys={"key", "settings", "versions", "extras", "attribution"}
    )


def assert_same_shape(found, documented, open_keys):
    if isinstance(documented, list) and documented and found:
        assert_same_shape(found[0], documented[0], open_keys)
    elif isinstance(documented, dict):
        assert set(found) == set(documented)
        for key in set(documented) - open_keys:
            assert_same_shape(found[key], documented[key], open_keys)
    else:
        assert isinstance(found, type(documented)) or None in (found, documented)
