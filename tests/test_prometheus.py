"""A real Prometheus scrapes two processes: every query of the ready views finds something, and their dollars are the bill."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("langchain_openai", reason="pip install --group test")
pytest.importorskip("opentelemetry.exporter.prometheus", reason="pip install --group test")

from prometheus import Prometheus, free_port, installed

from maestro_core import Maestro

pytestmark = pytest.mark.skipif(
    not installed(), reason="no Prometheus here: apt-get install prometheus, or make peers"
)

ROOT = Path(__file__).parents[1]
VIEWS = ROOT / "docs" / "observability"
PANELS = json.loads((VIEWS / "grafana.json").read_text("utf-8"))["panels"]
COUNTED = (
    "sum(max_over_time(maestro_cost_usd_total[1h]))"
    " - (sum(max_over_time(maestro_cost_corrections_usd_total[1h])) or vector(0))"
)


def asked(panel):
    """A panel's query with Grafana's variables as they are for the last hour, scraped twice a second."""
    expression = panel["targets"][0]["expr"]
    return expression.replace("$__range", "1h").replace("$__rate_interval", "1m")


class Spender:
    """An application in a process of its own."""

    def __init__(self, ledger, team):
        self.port, self.bill_nanos = free_port(), 0
        command = [sys.executable, str(ROOT / "tests" / "spending.py"), ledger, str(self.port), team]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ready(self):
        assert self._process.stdout.readline() == "ready\n"

    def spend(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.bill_nanos = int(self._process.stdout.readline())

    def end(self):
        self._process.stdin.close()
        assert self._process.wait(30) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        with self._process:  # closes its pipes
            pass


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A Prometheus that has seen two processes spend, one before it was scraped first, and then end; and what they spent."""
    folder = tmp_path_factory.mktemp("prometheus")
    ledger = f"sqlite:///{folder}/maestro.db"
    with Spender(ledger, "growth") as growth, Spender(ledger, "sales") as sales:
        for spender in (growth, sales):
            spender.ready()
        growth.spend()
        with Prometheus(folder, [growth.port, sales.port], VIEWS / "rules.yaml") as server:
            assert server.comes(COUNTED, growth.bill_nanos / 1e9)
            growth.spend()
            sales.spend()
            spent_nanos = growth.bill_nanos + sales.bill_nanos
            assert server.comes(COUNTED, spent_nanos / 1e9)
            sales.end()
            assert server.comes('up{job="agents"}', 1)
            maestro = Maestro(ledger=ledger)
            report = maestro.report(by="team", since="all")
            maestro.close()
            yield server, spent_nanos, report


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_shows_something(panel, seen):
    server, *_ = seen
    found = server.query(asked(panel))
    assert found
    assert all(math.isfinite(value) for _, value in found)
    for label in re.findall(r"\{\{(\w+)\}\}", panel["targets"][0]["legendFormat"]):
        assert any(label in labels for labels, _ in found)


def titled(start):
    (panel,) = [panel for panel in PANELS if panel["title"].startswith(start)]
    return asked(panel)


def test_the_spend_of_a_period_is_the_bill(seen):
    server, spent_nanos, report = seen
    (panel,) = [panel for panel in PANELS if panel["title"] == "Spend in this period"]
    assert nanos(server.total(asked(panel))) == spent_nanos == report.total * 10**9


@pytest.mark.parametrize("by", ["by model", "by team and feature", "by agent and tool"])
def test_its_parts_add_up(by, seen):
    server, spent_nanos, _ = seen
    (panel,) = [panel for panel in PANELS if panel["title"] == f"Spend in this period, {by}"]
    late = server.total("max_over_time(maestro_cost_corrections_usd_total[1h])")
    assert late > 0
    assert nanos(server.total(asked(panel)) - late) == spent_nanos


def test_increase_alone_would_not_do(seen):
    server, spent_nanos, _ = seen
    assert nanos(server.total("increase(maestro_cost_usd_total[1h])")) < spent_nanos


def test_every_rule_is_sound_and_fires(seen):
    server, *_ = seen
    assert server.comes('count(count by (alertname) (ALERTS{alertstate="firing"}))', 5)
    rules = server.rules()
    assert {name: rule["health"] for name, rule in rules.items()} == dict.fromkeys(rules, "ok")
    states = {name: rule["state"] for name, rule in rules.items() if rule["type"] == "alerting"}
    assert states == dict.fromkeys(states, "firing")
    assert len(states) == 5
    for rule in rules.values():
        for alert in rule.get("alerts", ()):
            assert "no value" not in alert["annotations"]["summary"]
    recorded = {labels["maestro_team"]: value for labels, value in server.query("maestro:cost_usd:1h")}
    assert recorded.keys() == {"growth", "sales"}


def nanos(dollars):
    return round(dollars * 1e9)
