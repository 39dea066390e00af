"""The page about providers says what the installed integrations really do; `make matrix` installs and tries all of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| `(\w+)` \((langchain-[\w-]+)\) \|.*$", PAGE, re.MULTILINE)
SCRIPT = ROOT / "tests/matrix/providers.py"


@pytest.fixture(scope="module")
def found() -> list[str]:
    """The lines that the script makes here."""
    done = subprocess.run([sys.executable, SCRIPT, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_has_the_integrations_that_are_always_tested():
    assert {"langchain-openai", "langchain-anthropic"} <= {package for _, package in LINES}
    assert len(LINES) >= 12


INSTALLED = [name for name, package in LINES if find_spec(package.replace("-", "_"))]


@pytest.mark.parametrize("name", INSTALLED)
def test_the_page_is_true(found, name):
    (line,) = [each for each in found if each.startswith(f"| `{name}` ")]
    assert line in PAGE, "docs/providers.md is not what this finds; make it anew with: make matrix"
