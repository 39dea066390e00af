"""The page on traces and metrics, and the ready views, speak of names that exist, and of all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from maestro_core.settings import Settings
from maestro_core.telemetry import names

FOLDER = Path(__file__).parents[1] / "docs" / "observability"
PAGE = (FOLDER / "README.md").read_text("utf-8")
BEHIND_A_SWITCH = {names.LATEST_DURATION, names.LATEST_FIRST_CHUNK, names.LATEST_TOKENS}


def every_name():
    found = {
        value
        for value in vars(names).values()
        if isinstance(value, str) and "." in value and " " not in value
    }
    found |= {attribute for attributes in names.KIND_NAMES.values() for attribute in attributes}
    return {name for name in found if re.match(r"(gen_ai|maestro|error|server)\.", name)} - {
        "maestro_core.telemetry"
    }


@pytest.mark.parametrize("name", sorted(every_name() - BEHIND_A_SWITCH))
def test_every_name_is_explained(name):
    assert f"`{name}`" in PAGE


def test_every_way_of_spans_is_explained():
    modes = Settings.model_fields["spans"].annotation.__args__
    assert re.findall(r'^\| `"(\w+)"` \|', PAGE, re.MULTILINE) == list(modes)


def test_honeycomb_asks_for_columns_that_we_write():
    known = every_name() | {"duration_ms", "maestro.customer", "maestro.run"}
    for query in json.loads((FOLDER / "honeycomb.json").read_text("utf-8"))["queries"]:
        parts = query["query"]["calculations"] + query["query"]["filters"]
        columns = {part["column"] for part in parts if "column" in part} | set(query["query"]["breakdowns"])
        assert columns <= known, query["name"]


def test_honeycomb_takes_the_queries():
    """By https://docs.honeycomb.io/reference/query-specification."""
    fields = {"breakdowns", "calculations", "filters", "filter_combination", "orders", "limit", "time_range"}
    for query in json.loads((FOLDER / "honeycomb.json").read_text("utf-8"))["queries"]:
        asked = query["query"]
        assert asked.keys() <= fields, query["name"]
        for one in asked["calculations"]:
            assert one["op"] in {"COUNT", "SUM", "MAX", "P95", "HEATMAP"}
            assert ("column" in one) == (one["op"] != "COUNT")
        for one in asked["filters"]:
            assert one["op"] in {"=", "exists"}
            assert ("value" in one) == (one["op"] == "=")
        for one in asked["orders"]:
            assert {name: one[name] for name in ("op", "column") if name in one} in asked["calculations"]
            assert one["order"] in {"ascending", "descending"}
        assert 1 <= asked["limit"] <= 1_000


def unknown(expression):
    """Return the metrics of a PromQL expression that we do not write."""
    known = {name.replace(".", "_") for name in every_name()}
    found = set(re.findall(r"\b((?:maestro|gen_ai)_\w+)[\[){]", expression))
    assert found
    return {name for name in found if re.sub(r"(_seconds)?_(total|bucket|sum|count)$", "", name) not in known}


def test_grafana_asks_for_metrics_that_we_write():
    for panel in json.loads((FOLDER / "grafana.json").read_text("utf-8"))["panels"]:
        (target,) = panel["targets"]
        assert not unknown(target["expr"]), panel["title"]


def test_rules_ask_for_metrics_that_we_write():
    rules = yaml.safe_load((FOLDER / "rules.yaml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["expr"].startswith("maestro:") or not unknown(rule["expr"]), rule


def test_jaeger_searches_for_tags_that_we_write():
    tags = re.findall(r"`((?:maestro|gen_ai)\.[\w.]+)=", (FOLDER / "jaeger.md").read_text("utf-8"))
    assert (
        {"maestro.refused", "maestro.overrun"}
        <= set(tags)
        <= every_name() | {"maestro.customer", "maestro.run"}
    )


def test_the_collector_is_wired():
    config = yaml.safe_load((FOLDER / "collector.yaml").read_text("utf-8"))
    for pipeline in config["service"]["pipelines"].values():
        for part, chosen in pipeline.items():
            assert set(chosen) <= config[part].keys()
    policies = {policy["name"]: policy for policy in config["processors"]["tail_sampling"]["policies"]}
    for policy in policies.values():
        assert policy["type"] in policy
    assert policies["refused"]["string_attribute"]["key"] in every_name()
    assert policies["overrun"]["boolean_attribute"]["key"] in every_name()


def test_what_the_compose_file_starts_is_what_the_collector_sends_to():
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
    exporters = yaml.safe_load((FOLDER / "collector.yaml").read_text("utf-8"))["exporters"]
    assert {
        re.split("[/:]+", e["endpoint"].removeprefix("http://"))[0] for e in exporters.values()
    } <= services.keys()
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert (FOLDER / volume.partition(":")[0]).exists()
