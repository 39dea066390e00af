"""Maestro beside each other instrumentation of LangChain and of LlamaIndex, each in an environment of its own.

    make peers

It makes `.venv-peers/<name>/`, runs `worker_telemetry.py` or `worker_llamaindex_telemetry.py` in each, and writes
`docs/observability/coexistence.md`. It fails if a model span is missing, drawn twice, or without its cost.
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

LLAMA = [
    "llama-index-core>=0.14.20,<0.15", "llama-index-llms-openai>=0.7", "llama-index-embeddings-openai>=0.6"
]  # fmt: skip
# The last says whether it draws a span for every request, so that none of ours is needed.
LLAMAINDEX_PEERS = {
    "openinference": ("OpenInference", ["openinference-instrumentation-llama-index"], True),
    "langfuse": ("Langfuse, through OpenInference", ["langfuse", "openinference-instrumentation-llama-index"], True),
    "traceloop": ("Traceloop (OpenLLMetry)", ["opentelemetry-instrumentation-llamaindex"], False),
    "llamaindex": ("LlamaIndex's own", ["llama-index-observability-otel"], False),
}  # fmt: skip

HEAD = """# Beside other instrumentation

`make peers` writes this page. Each row is a LangChain agent (two model calls, one tool), or one streamed model call, with Maestro's handler and
one other instrumentation attached, over HTTP to the stand-in provider, in an environment of its own. *Model spans* are those that the
other one drew; *with cost* how many of them carry Maestro's cost; *ours* how many spans Maestro drew itself; the sum of the costs was the
provider's bill in every row.

| instrumentation | version | way | requests | model spans | with cost | ours | traces |
|---|---|---|---|---|---|---|---|
"""


LLAMAINDEX_HEAD = """
## LlamaIndex

The same for a model's methods, a list of five texts that takes three requests to embed, and `FunctionAgent` (two model calls, which it streams, and
one tool), with `attach`; *another LLM* is one whose class is not called `OpenAI`. *Model spans* are those of the other one that say so, of several around one request the innermost;
OpenInference's `OpenAI._prepare_chat_with_tools`, which sends nothing, is left out.

| instrumentation | version | way | requests | model spans | with cost | ours | traces |
|---|---|---|---|---|---|---|---|
"""

LLAMAINDEX_FOOT = """
Traceloop leaves the calls of LlamaIndex's `OpenAI` to its instrumentation of OpenAI, and LlamaIndex's own ends the span of a stream before the first
chunk: there Maestro draws the call, inside their trace. With Traceloop's instrumentation of OpenAI there is then another span of the call,
without a cost.
"""


def environment(name: str, packages: list[str], *, base: str = "[demo]") -> Path:
    """Return the interpreter of an environment that has Maestro and these packages."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "-qq"]
        subprocess.run([*install, "--editable", f"{ROOT}{base}", *packages], check=True)
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


def langchain(bad: list[str]) -> list[str]:
    """Return the rows of LangChain."""
    lines = []
    for name, (title, packages) in PEERS.items():
        python = environment(name, packages)
        ways = run(python, "worker_telemetry.py", name)
        lines += [row(title, version(python, packages[0]), way, found) for way, found in ways.items()]
        bad += [f"{title}, {way}: {found}" for way, found in ways.items() if wrong(found)]
        if ways["10 at once"]["traces"] != 10:
            bad.append(f"{title}: ten agents are not ten traces")
    return lines


def llamaindex(bad: list[str]) -> list[str]:
    """Return the rows of LlamaIndex."""
    lines = []
    for name, (title, packages, whole) in LLAMAINDEX_PEERS.items():
        python = environment(f"llamaindex-{name}", [*LLAMA, *packages], base="")
        ways = run(python, "worker_llamaindex_telemetry.py", name)
        lines += [row(title, version(python, packages[0]), way, found) for way, found in ways.items()]
        for way, found in ways.items():
            wanted = 1 if "embeddings" in way else found["requests"]
            drawn = found["model spans"] == found["with cost"] == wanted - found["ours"]
            if not (drawn and found["cost equals bill"]) or (whole and found["ours"]):
                bad.append(f"{title}, {way}: {found}")
        if ways["10 at once"]["traces"] != 10:
            bad.append(f"{title}: ten agents are not ten traces")
    return lines


def run(python: Path, worker: str, name: str) -> dict[str, dict[str, Any]]:
    """Return what a worker found, by way."""
    command = [str(python), str(HERE / worker), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout.splitlines()[-1])


def row(title: str, release: str, way: str, found: dict[str, Any]) -> str:
    """Return a row of the page."""
    cells = [title, release, way]
    cells += [str(found[k]) for k in ("requests", "model spans", "with cost", "ours", "traces")]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    bad: list[str] = []
    page = HEAD + "\n".join(langchain(bad)) + "\n"
    page += LLAMAINDEX_HEAD + "\n".join(llamaindex(bad)) + "\n" + LLAMAINDEX_FOOT
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page, "utf-8")
    print(page)
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
