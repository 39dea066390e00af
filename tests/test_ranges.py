"""The page about version ranges is of the environments that there are, and its lowest versions are those that we promise."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from ranges.table import ENVIRONMENTS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ranges.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]
VERSIONS = {row[0]: dict(each.split(" ") for each in row[1].split("<br>")) for row in ROWS}


def test_every_environment_was_tried():
    assert [row[0] for row in ROWS] == [one.what for one in ENVIRONMENTS]
    assert all(int(row[2]) > 0 for row in ROWS)


@pytest.mark.parametrize("one", ENVIRONMENTS, ids=lambda one: one.name)
def test_their_tests_are_there(one):
    assert [each for each in one.tests if not (ROOT / each).exists()] == []
    assert VERSIONS[one.what].keys() == set(one.shown)


@pytest.mark.parametrize(
    ("extra", "package"),
    [("langchain", "langchain-core"), ("langchain", "langchain"), ("llamaindex", "llama-index-core")],
)
def test_the_lowest_versions_are_those_that_we_promise(extra, package):
    (promised,) = [
        found[1]
        for each in PROJECT["optional-dependencies"][extra]
        if (found := re.fullmatch(rf"{package}>=([\d.]+),<[\d.]+", each))
    ]
    (lowest,) = [one.what for one in ENVIRONMENTS if one.lowest and package in one.shown]
    assert VERSIONS[lowest][package] == promised
