"""Every block of the README runs as it stands, against the stand-in provider."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core import Settings as LlamaIndex

from maestro_core import Maestro

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_order(provider, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", provider.openai_url)
    monkeypatch.setenv("OPENAI_API_BASE", provider.openai_url)  # LlamaIndex's name for it
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(LlamaIndex, "_llm", None)
    monkeypatch.setattr(LlamaIndex, "_callback_manager", None)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.anthropic_url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    scope: dict[str, object] = {}
    made = []
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)  # noqa: S102 - that is the test
        made.append(scope["maestro"])
    assert len(provider.requests) == 8
    assert "researcher" in capsys.readouterr().out
    assert scope["maestro"].report("model", since="all").total == provider.bill
    scope["client"].close()
    for maestro in {id(m): m for m in made}.values():
        maestro.close()


def test_the_shell_commands_run(tmp_path):
    with_calls = Maestro(ledger=f"sqlite:///{tmp_path}/maestro.db")
    with with_calls.call(provider="openai", model="gpt-5-mini", input="x", max_output_tokens=5):
        pass
    with_calls.close()
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("maestro ")]
    assert len(commands) == 4
    for command in commands:
        words = [sys.executable, "-m", "maestro_core.cli", *command.split()[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_the_settings_block_is_valid(tmp_path, monkeypatch):
    (tmp_path / "maestro.toml").write_text(blocks("toml")[0])
    monkeypatch.chdir(tmp_path)
    maestro = Maestro()
    assert maestro.settings.time_zone == "Europe/Berlin"
    assert [str(cap) for cap in maestro.settings.caps] == ["$20.00 per customer every day"]
    maestro.close()


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
