"""Maestro beside each other instrumentation of LangChain, each in an environment of its own.

    make peers

It makes `.venv-peers/<name>/`, runs `worker_telemetry.py` in each, and writes `docs/observability/coexistence.md`. It
fails if a model span is missing, drawn twice, or without its cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "observability" / "coexistence.md"

PEERS = {
    "openinference": ("OpenInference", ["openinference-instrumentation-langchain"]),
    "traceloop": ("Traceloop (OpenLLMetry)", ["opentelemetry-instrumentation-langchain"]),
    "official": (
        "OpenTelemetry's own",
        # Named with their versions, because pip takes no beta that nobody names.
        ["opentelemetry-instrumentation-genai-langchain==1.3b0", "opentelemetry-util-genai==1.3b0"],
    ),
    "langfuse": ("Langfuse's handler", ["langfuse"]),
}

HEAD = """# Beside other instrumentation

`make peers` writes this page. Each row is a LangChain agent (two model calls, one tool), or one streamed model call, with Maestro's handler and
one other instrumentation attached, over HTTP to the stand-in provider, in an environment of its own. *Model spans* are those that the
other one drew; *with cost* how many of them carry Maestro's cost; *ours* how many spans Maestro drew itself; the sum of the costs was the
provider's bill in every row.

| instrumentation | version | way | requests | model spans | with cost | ours | traces |
|---|---|---|---|---|---|---|---|
"""


def environment(name: str, packages: list[str]) -> Path:
    """Return the interpreter of an environment that has Maestro and these packages."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-qq"]
        subprocess.run([*install, "--editable", f"{ROOT}[demo]", *packages], check=True)
    return python


def version(python: Path, package: str) -> str:
    """Return the version of an installed package."""
    code = f"import importlib.metadata as m; print(m.version({package.split('==', maxsplit=1)[0]!r}))"
    return subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def wrong(found: dict[str, Any]) -> bool:
    """Whether anything is missing or twice."""
    whole = found["model spans"] == found["with cost"] == found["requests"] and found["cost equals bill"]
    return not whole or found["ours"] > 0


def main() -> None:
    lines, bad = [], []
    for name, (title, packages) in PEERS.items():
        python = environment(name, packages)
        worker = [str(python), str(HERE / "worker_telemetry.py"), name]
        done = subprocess.run(worker, check=True, capture_output=True, text=True, timeout=300)
        ways = json.loads(done.stdout.splitlines()[-1])
        for way, found in ways.items():
            cells = [title, version(python, packages[0]), way]
            cells += [str(found[k]) for k in ("requests", "model spans", "with cost", "ours", "traces")]
            lines.append("| " + " | ".join(cells) + " |")
            bad += [f"{title}, {way}: {found}"] if wrong(found) else []
        if ways["10 at once"]["traces"] != 10:
            bad.append(f"{title}: ten agents are not ten traces")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
