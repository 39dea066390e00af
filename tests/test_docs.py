"""The blocks of the guides run as they stand, against the stand-in provider."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from maestro_langchain import installation
from maestro_langchain.prove import prove

GUIDE = (Path(__file__).parents[1] / "docs/langchain.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(provider, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", provider.openai_url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return tmp_path


def test_the_python_blocks_of_the_langchain_guide_run_in_order(environment, provider, capsys):
    provider.reply = None
    scope: dict[str, object] = {}
    with installation.lent(None):
        for block in blocks("python"):
            exec(compile(block, "langchain.md", "exec"), scope)  # noqa: S102 - that is the test
    shown = capsys.readouterr().out
    assert "researcher" in shown
    assert "text-embedding-3-small" in shown
    maestro = scope["maestro"]
    provider.wait_idle()
    assert len(provider.requests) == 4
    assert maestro.report("model", since="all").total == provider.bill
    maestro.close()


def test_the_shell_block_of_the_langchain_guide_runs(environment, provider):
    (environment / "app.py").write_text(
        "from langchain_openai import ChatOpenAI\nChatOpenAI(model='gpt-5-mini', max_tokens=9).invoke('Hello')\n",
        encoding="utf-8",
    )
    first, second = blocks("sh")[0].splitlines()
    run = first.replace("python app.py", f"{shlex.quote(sys.executable)} app.py")
    assert run != first
    assert second.startswith("maestro ")
    report = f"{shlex.quote(sys.executable)} -m maestro_core.cli {second.removeprefix('maestro ')}"
    done = subprocess.run(["/bin/sh", "-ec", f"{run}\n{report}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^growth ", done.stdout, re.MULTILINE)
    assert len(provider.requests) == 1


def test_the_guide_names_every_exit_behaviour():
    from maestro_langchain.middleware import ExitBehavior

    assert re.findall(r'^\| `"(\w+)"` \|', GUIDE, re.MULTILINE) == list(ExitBehavior.__args__)


def test_the_guide_has_a_line_for_every_kind_of_door():
    rows = re.findall(r"^\| (`.*?) \|", GUIDE, re.MULTILINE)
    kinds = {
        "handler": "MaestroCallbackHandler",
        "middleware": "MaestroMiddleware",
        "install()": "install()",
        "governed": "governed(embeddings)",
        "maestro.call": "maestro.call",
    }
    for proof in prove():
        (kind,) = [words for prefix, words in kinds.items() if proof.door.startswith(prefix)]
        assert any(kind in row for row in rows), proof.door
