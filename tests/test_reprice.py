"""`maestro reprice`: history priced again, as corrections beside the rows that stay."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from typer.testing import CliRunner

from maestro_core import Cap, Maestro, Usage
from maestro_core.cli import app
from maestro_core.ledger import open_ledger
from maestro_core.settings import Settings
from maestro_core.types import Attribution, Call, Hold, Meter, Settlement

USED = Usage(input_tokens=1_000, cache_read_tokens=400, output_tokens=200)
SHEET = 560_000  # nano-dollars: 600 at $0.25, 400 at $0.025 and 200 at $2 per million
ADVISED = Usage(
    input_tokens=1_000,
    output_tokens=10,
    web_searches=1,
    lines=[
        (None, Usage(input_tokens=1_000, output_tokens=10)),
        ("claude-opus-4-8", Usage(input_tokens=500, output_tokens=10)),
    ],
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def setting(place, *tables):
    """Write the price tables of maestro.toml."""
    text = "".join("[[prices]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in t.items()) for t in tables)
    (place / "maestro.toml").write_text(text, encoding="utf-8")


def spend(usage=USED, *, provider="openai", model="gpt-5-mini", plugin=None, caps=(), **call):
    """Make one call as programs do, by the settings in the folder; return its record."""
    maestro = Maestro(caps=caps)
    if plugin:
        maestro.plugins.register(plugin)
    call = Call(provider=provider, model=model, input="x" * 9_000, max_output_tokens=1_000,
                attribution=Attribution({"team": "growth"}), **call)  # fmt: skip
    record = maestro.settle(maestro.reserve(call), usage)
    maestro.close()
    return record


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def reprice(*arguments):
    return json.loads(run("reprice", "--since", "all", "--json", *arguments).stdout)


def contents():
    ledger = open_ledger("sqlite:///maestro.db")
    records, check, sums = list(ledger.records()), ledger.check(), ledger.sums(("team",))
    ledger.close()
    assert check == []
    return records, sums


def test_nothing_is_corrected_while_prices_stay(place):
    setting(place, {"provider": "azure", "discount": "0.15"}, {"model": "*", "input": "3", "output": "9"},
            {"provider": "aws", "tier": "flex", "multiplier": "0.5"}, {"provider": "vllm", "per_hour": "20"})  # fmt: skip
    spend()
    spend(provider="azure")
    spend(model="nobody-knows", caps=[Cap(5)])
    spend(ADVISED, provider="anthropic", model="claude-sonnet-5")
    spend(
        Usage(**USED.counts, provider_cost=Decimal("0.0031")),
        provider="openrouter",
        model="openai/gpt-5-mini",
    )
    spend(Usage(input_tokens=100, output_tokens=5), provider="aws", model="amazon.nova-pro-v1:0", tier="flex")
    spend(Usage(input_tokens=100, output_tokens=5, tier="priority"), model="gpt-5.4")
    spend(USED, provider="deepseek", model="deepseek-v4-pro", at=datetime(2026, 11, 2, 2, tzinfo=UTC))
    spend(provider="vllm", model="llama")
    # an unpriced kind under a cap counts at its hold
    spend(Usage(input_tokens=10, output_tokens=1, code_executions=1), caps=[Cap(5)])
    found = reprice()
    assert (found["corrected"], found["skipped"], found["unchanged"]) == (0, 0, 10)
    assert len(contents()[0]) == 10
    assert "nothing to correct" in run("reprice", "--since", "24h").stdout


def test_a_new_price_is_written_once_as_a_difference(place):
    before = spend()
    setting(place, {"provider": "openai", "discount": "0.5"})
    dry = reprice("--dry-run")
    assert (dry["dry_run"], dry["corrected"], dry["difference"]) == (True, 1, "-0.00028")
    assert contents()[0] == [before]
    found = reprice()
    assert {k: v for k, v in found.items() if k != "dry_run"} | {"until": 0} == {
        k: v for k, v in dry.items() if k != "dry_run"
    } | {"until": 0}
    assert found["rows"] == [{"provider": "openai", "model": "gpt-5-mini", "calls": 1, "before": "0.00056",
                              "after": "0.00028", "difference": "-0.00028"}]  # fmt: skip
    (first, correction), [team] = contents()
    assert first == before
    assert (correction.kind, correction.cost_nanos, correction.sheet_nanos) == (
        "corrected",
        -SHEET // 2,
        SHEET,
    )
    assert correction.price_id.startswith("discount 0.5 of openai:gpt-5-mini")
    assert correction.detail["reason"] == "repriced"
    assert (team.cost_nanos, team.calls, team.input_tokens) == (SHEET // 2, 1, 1_000)
    assert reprice()["corrected"] == 0
    (place / "maestro.toml").unlink()
    assert reprice()["difference"] == "0.00028"
    assert reprice()["corrected"] == 0
    assert contents()[1][0].cost_nanos == SHEET


def test_buckets_follow(place):
    cap = Cap("1", per="team")
    spend(caps=[cap])
    setting(place, {"provider": "openai", "multiplier": "100"})
    reprice()
    maestro = Maestro(caps=[cap])
    [status] = maestro.status()
    maestro.close()
    assert status.spent == Decimal("0.056")


def test_what_had_no_price_gets_one(place):
    record = spend(model="nobody-knows")
    assert (record.cost_nanos, record.unpriced) == (0, ("*",))
    assert reprice()["skipped"] == 1
    assert "cannot be priced again" in run("reprice", "--since", "all").stderr
    setting(place, {"provider": "openai", "model": "nobody-knows", "input": "1", "output": "1"})
    assert (reprice()["corrected"], reprice()["corrected"]) == (1, 0)
    [team] = contents()[1]
    assert (team.cost_nanos, team.unpriced_calls, team.estimated_nanos) == (1_200_000, 0, 0)


def test_what_was_assumed_becomes_known(place):
    setting(place, {"model": "*", "input": "10", "output": "10"})
    spend(model="nobody-knows", caps=[Cap(5)])
    assert contents()[1][0].estimated_nanos == 12_000_000
    setting(place, {"provider": "openai", "model": "nobody-knows", "input": "10", "output": "10"})
    assert reprice()["difference"] == "0"  # the same money, known now
    assert contents()[1][0].estimated_nanos == 0


def test_what_a_machine_cost_follows_the_time_that_was_kept(place):
    maestro = Maestro(prices=[{"provider": "vllm", "per_hour": "36"}])
    reservation = maestro.reserve(Call(provider="vllm", model="llama", input="hi", max_output_tokens=5))
    assert maestro.settle_with(reservation, USED, {"latency_ms": 2_000}).cost == Decimal("0.02")
    maestro.close()
    setting(place, {"provider": "vllm", "per_hour": "72"})
    assert reprice()["rows"][0]["after"] == "0.04"


def test_estimates_without_usage_and_open_or_released_calls_are_left_alone():
    spend(None, caps=[Cap(5)])
    ledger = open_ledger("sqlite:///maestro.db")
    for key in ("open", "released", "presumed"):
        ledger.reserve(Hold(key, 5, "openai", "gpt-5-mini", Attribution()))
    ledger.release("released", "429")
    ledger.presume(keys=["presumed"])
    ledger.close()
    before = contents()
    assert reprice()["corrected"] == 0
    assert contents() == before


def test_a_late_truth_is_priced_again_too(place):
    ledger = open_ledger("sqlite:///maestro.db")
    ledger.declare([Meter()])
    ledger.reserve(Hold("late", 5_000, "openai", "gpt-5-mini", Attribution({"team": "growth"})))
    ledger.presume(keys=["late"])
    ledger.settle("late", Settlement(cost_nanos=SHEET, usage=USED.counts))
    ledger.close()
    assert reprice()["corrected"] == 0
    setting(place, {"provider": "openai", "discount": "0.5"})
    assert reprice()["rows"][0]["before"] == "0.00056"
    assert contents()[1][0].cost_nanos == SHEET // 2


class Plugin:
    """Prices everything at a dollar."""

    from maestro_core import hookimpl

    @hookimpl
    def maestro_price(self, call, usage):
        from maestro_core.types import Cost

        return Cost(10**9, price_id="own")


def test_what_an_absent_plugin_priced_is_left_alone():
    assert spend(plugin=Plugin()).cost == 1
    assert (reprice()["corrected"], reprice()["skipped"]) == (0, 1)


def test_only_the_period_is_priced_again(place):
    spend()
    setting(place, {"provider": "openai", "discount": "0.5"})
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")
    assert reprice("--until", "2026-01-01T00:00:00Z")["corrected"] == 0
    assert json.loads(run("reprice", "--since", today, "--json", "--dry-run").stdout)["corrected"] == 1


def test_the_table(place):
    spend()
    setting(place, {"provider": "openai", "discount": "0.5"})
    shown = run("reprice", "--since", "all", "--dry-run").stdout.splitlines()
    assert [line.split() for line in shown] == [
        ["model", "calls", "before", "after", "difference"],
        ["openai:gpt-5-mini", "1", "$0.00056", "$0.00028", "-$0.00028"],
        ["total", "1", "$0.00056", "$0.00028", "-$0.00028"],
        ["nothing", "was", "written"],
    ]


def test_a_period_has_to_be_named_and_a_ledger_there():
    assert "--since" in run("reprice", code=2).stderr
    assert "no ledger at" in run("reprice", "--since", "all", code=1).stderr
    assert Settings().prices == ()
