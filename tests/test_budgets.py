"""Budgets are tracked and forecast, caps warn before they refuse; each is told once, whoever spends."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st

from maestro_core import Budget, Cap, attribution
from maestro_core.alerts import Alerts
from maestro_core.cli import main
from maestro_core.clock import to_micros
from maestro_core.errors import LedgerUnavailable
from maestro_core.forecasts import forecast
from maestro_core.ledger import open_ledger
from maestro_core.plugins import load
from maestro_core.routes import AlertSettings
from maestro_core.testing import Reply
from maestro_core.thresholds import Thresholds, declaration
from maestro_core.types import Attribution, Hold, Settlement, Window, new_key
from maestro_langchain import MaestroCallbackHandler

USD = 1_000_000_000
NOON = to_micros(datetime(2026, 11, 2, 12, tzinfo=UTC))


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture(params=["memory:", "sqlite"])
def ledger(request, tmp_path, clock):
    url = request.param if request.param == "memory:" else f"sqlite:///{tmp_path}/ledger.db"
    ledger = open_ledger(url, clock=clock)
    yield ledger
    ledger.close()


class Watch:
    """Caps and budgets over a ledger; `look` returns what is told anew."""

    def __init__(self, ledger, *limits):
        self.ledger = ledger
        self.alerts = Alerts(AlertSettings(log=False), ledger, load())
        self.thresholds = Thresholds(limits, "UTC", ledger, self.alerts)
        ledger.declare([limit.meter("UTC") for limit in limits])
        self.seen = 0

    def spend(self, usd, **dimensions):
        key, where = new_key(), Attribution({"run": "r1", **dimensions})
        self.ledger.reserve(Hold(key, 0, "openai", "gpt-5", where))
        self.ledger.settle(key, Settlement(cost_nanos=round(usd * USD)))

    def look(self):
        before = {note.key for note in self.ledger.notes("alert")}
        told = []
        self.alerts.tell = told.append
        self.thresholds.look()
        assert {alert.key for alert in told} <= {n.key for n in self.ledger.notes("alert")} - before
        return told


def test_each_threshold_is_told_once(ledger):
    watch = Watch(ledger, Budget("10", per="team"))
    kinds = []
    for _ in range(12):
        watch.spend(1, team="growth")
        kinds += [(a.kind, a.scope, a.text.split(" of its ")[0].split(", ")[1]) for a in watch.look()]
    assert kinds == [("threshold", "team=growth", f"{percent} %") for percent in (50, 80, 100)]


def test_of_several_at_once_only_the_highest_is_told(ledger):
    watch = Watch(ledger, Cap("10", per="customer", every="day", alert_at=(0.5, 0.8)))
    watch.spend(9, customer="acme")
    (alert,) = watch.look()
    assert alert.text.startswith(
        "threshold: customer=acme every day has spent $9.00, 90 % of its cap of $10.00"
    )
    assert alert.stop == 'Cap("10", per="customer", every="day")'
    assert (alert.run_id, alert.model, alert.attribution.dimensions) == ("r1", "gpt-5", {"customer": "acme"})
    assert watch.look() == []


def test_the_next_window_is_told_anew(ledger, clock):
    watch = Watch(ledger, Cap("10", every="day", alert_at=0.8))
    watch.spend(9)
    assert len(watch.look()) == 1
    clock.now += 86_400_000_000
    assert watch.look() == []
    watch.spend(9)
    assert len(watch.look()) == 1


def test_presumed_money_counts_and_held_money_does_not(ledger):
    watch = Watch(ledger, Cap("10", alert_at=0.8))
    key = new_key()
    ledger.reserve(Hold(key, 9 * USD, "openai", "gpt-5", Attribution({})))
    assert watch.look() == []
    ledger.presume(keys=[key])
    assert len(watch.look()) == 1


def test_another_process_does_not_tell_it_again(ledger):
    limit = Budget("10")
    first, second = Watch(ledger, limit), Watch(ledger, limit)
    first.spend(6)
    assert len(first.look()) == 1
    assert second.look() == []


def test_a_budget_that_will_not_last_is_told_with_the_day(ledger, clock):
    watch = Watch(ledger, Budget("500", per="feature", every="month", alert_at=()))
    assert watch.look() == []  # without any alert_at nothing is watched
    watch = Watch(ledger, Budget("500", per="feature", every="month", alert_at=1.0))
    clock.now = to_micros(datetime(2026, 11, 8, tzinfo=UTC))
    watch.spend(194.5, feature="search")
    (alert,) = watch.look()
    assert alert.kind == "forecast"
    assert alert.text == (
        "forecast: feature=search every month reaches its budget of $500.00 on 18 November at 23:52 UTC at this pace:"
        " $194.50 spent after 23% of the month, $833.57 at its end"
    )
    assert float(alert.projected_usd) == pytest.approx(833.57, abs=0.01)
    assert watch.look() == []


def test_a_budget_that_lasts_is_not_told(ledger, clock):
    watch = Watch(ledger, Budget("500", every="month"))
    clock.now = to_micros(datetime(2026, 11, 16, tzinfo=UTC))
    watch.spend(240)
    assert watch.look() == []


@given(
    spent=st.integers(0, 10**15),
    limit=st.integers(0, 10**15),
    length=st.integers(1, 10**13),
    passed=st.integers(0, 10**13),
)
def test_a_forecast_keeps_the_pace(spent, limit, length, passed):
    found = forecast(spent, limit, Window(1_000, 1_000 + length), 1_000 + passed)
    if not 0.1 * length <= passed <= length:
        assert found is None
        return
    assert spent <= found.projected_nanos + 1
    assert (found.reached_us is not None) == (spent < limit < found.projected_nanos)
    if found.reached_us is not None:
        assert 1_000 + passed <= found.reached_us <= 1_000 + length


def test_there_is_no_forecast_without_a_window():
    assert forecast(5, 10, None, NOON) is None


@pytest.mark.parametrize(
    "limit",
    [
        Cap("0.5", per="run"),
        Cap("20", per=("customer", "model"), where={"team": 'gro"wth'}, every="week"),
        Budget("3000", where={"team": "growth"}),
    ],
)  # fmt: skip
def test_the_line_that_would_stop_it_is_one(limit):
    made = eval(declaration(limit), {"Cap": Cap})  # noqa: S307 - our own line
    assert (made.limit, made.meter("UTC")) == (limit.limit, limit.meter("UTC"))


def test_from_a_real_call_to_the_alert(provider, openai, make_maestro):
    provider.reply = Reply(text="fine", input_tokens=400_000, output_tokens=10)
    maestro = make_maestro(budgets=[Budget("0.10", per="team")])
    with attribution(team="growth"):
        openai(callbacks=[MaestroCallbackHandler(maestro)]).invoke("x" * 1_600_000)
    maestro.thresholds.flush(time.monotonic() + 20)
    assert maestro.alerts.flush()
    (note,) = maestro.ledger.notes("alert")
    assert note.body["text"].startswith(
        "threshold: team=growth has spent $0.10, 100 % of its budget of $0.10"
    )


def test_a_ledger_that_fails_is_said_once_and_harms_nobody(
    provider, openai, make_maestro, monkeypatch, caplog
):
    maestro = make_maestro(budgets=[Budget("0.10")])

    def broken(meter):
        raise LedgerUnavailable("gone")

    monkeypatch.setattr(maestro.ledger, "buckets", broken)
    openai(callbacks=[MaestroCallbackHandler(maestro)]).invoke("hello")
    maestro.thresholds.flush(time.monotonic() + 20)
    assert "caps and budgets could not be looked at: gone" in caplog.text


def test_maestro_caps_shows_budgets_and_where_they_end(make_maestro, tmp_path, monkeypatch, capsys):
    declared = {"limit": "500", "every": "hour"}
    monkeypatch.setenv("MAESTRO_BUDGETS", json.dumps([declared]))
    monkeypatch.setenv("MAESTRO_LEDGER", f"sqlite:///{tmp_path}/ledger.db")
    maestro = make_maestro(ledger=f"sqlite:///{tmp_path}/ledger.db")
    assert main(["caps", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    with maestro.call(provider="openai", model="gpt-5-mini", input="hi", max_output_tokens=10):
        pass
    assert main(["caps", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["limit"], found["bucket"]) == ("budget", "500", "every hour")
    assert main(["caps"]) == 0
    assert "budget" in capsys.readouterr().out
