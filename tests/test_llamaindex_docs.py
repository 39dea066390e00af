"""The blocks of the LlamaIndex guide run as they stand, against the stand-in provider."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex is not installed: pip install --group test")

from maestro_llamaindex.gate import ExitBehavior

GUIDE = (Path(__file__).parents[1] / "docs/llamaindex.md").read_text(encoding="utf-8")


def test_the_python_blocks_run_in_order(provider, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_BASE", provider.openai_url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.anthropic_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    provider.reply = None
    scope: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "llamaindex.md", "exec"), scope)  # noqa: S102 - that is the test
    shown = capsys.readouterr().out
    assert "researcher" in shown
    assert "claude-sonnet-4-5" in shown
    maestro = scope["maestro"]
    provider.wait_idle()
    assert len(provider.requests) == 7
    assert maestro.report("model", since="all").total == provider.bill
    maestro.close()


def test_the_guide_names_every_exit_behaviour():
    assert re.findall(r'^\| `"(\w+)"` \|', GUIDE, re.MULTILINE) == list(ExitBehavior.__args__)
