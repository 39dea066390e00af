"""Maestro with the lowest versions of everything, one framework alone, and with other makers' clients.

    make ranges

It makes `.venv-ranges/<name>/` with uv, runs the tests of `table.py` in each, and writes its line of
`docs/ranges.md`. It fails if a test fails. Give names to try only these.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from table import ENVIRONMENTS, Environment

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ranges.md"
FOLDER = ROOT / ".venv-ranges"
TOOLS = ("pytest>=9", "pytest-asyncio>=1", "hypothesis>=6.120", "anyio>=4.8")
HEAD = """# Ranges

`make ranges` writes this page. Each row is a virtual environment of its own, and the tests that passed in it: real agents,
over HTTP, against a stand-in provider that keeps the true bill. *Lowest* is the lowest version of everything that
`pyproject.toml` names, Maestro's own dependencies too, with only one of the frameworks installed; a test looks that nothing
of the other one is imported. *Other makers* are LlamaIndex's clients of Gemini, Bedrock, Ollama and servers like OpenAI's, which talk to a
server on this machine in their own wire formats: what they report is settled, and what they do not say settles at the hold.

| environment | versions | passed | skipped |
|---|---|---|---|
"""


def make(one: Environment) -> Path:
    """Return the interpreter of an environment, made anew."""
    folder = FOLDER / one.name
    python = folder / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True)
    how = "lowest-direct" if one.lowest else "highest"
    install = ["uv", "pip", "install", "-q", "--python", str(python), "--resolution", how]
    packages = [f"{ROOT}{each[1:]}" if each.startswith(".") else each for each in one.packages]
    subprocess.run([*install, *TOOLS, "--editable", *packages], check=True)
    return python


def versions(python: Path) -> dict[str, str]:
    """Return what is installed."""
    command = ["uv", "pip", "list", "-q", "--python", str(python), "--format", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {each["name"]: each["version"] for each in json.loads(done.stdout)}


def tried(python: Path, one: Environment) -> tuple[int, int] | None:
    """Return how many tests passed and were skipped, or None if one failed."""
    # Another version's warnings are its own affair.
    command = [str(python), "-m", "pytest", "-q", "-W", "default", "--disable-warnings", *one.tests]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    print(done.stdout[-4_000:] if done.returncode else done.stdout.splitlines()[-1], flush=True)
    if done.returncode:
        print(done.stderr[-2_000:])
        return None
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    return counts.get("passed", 0), counts.get("skipped", 0)


def line(one: Environment, found: dict[str, str], counts: tuple[int, int]) -> str:
    """Return an environment's line of the page."""
    shown = "<br>".join(f"{package} {found[package]}" for package in one.shown)
    return f"| {one.what} | {shown} | {counts[0]} | {counts[1]} |"


def write(lines: dict[str, str]) -> None:
    """Write the page; lines of environments that were not tried stay as they are."""
    old = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    kept = {one.name: each for one in ENVIRONMENTS for each in old if each.startswith(f"| {one.what} |")}
    lines = {**kept, **lines}
    rows = [lines[one.name] for one in ENVIRONMENTS if one.name in lines]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


def main() -> None:
    """Try them all, or those that are named."""
    named, failed = sys.argv[1:], []
    for one in ENVIRONMENTS:
        if named and one.name not in named:
            continue
        print(f"== {one.name}: {one.what}", flush=True)
        python = make(one)
        counts = tried(python, one)
        if counts is None:
            failed.append(one.name)
        else:
            write({one.name: line(one, versions(python), counts)})
    if failed:
        raise SystemExit(f"tests failed in: {', '.join(failed)}")


if __name__ == "__main__":
    main()
