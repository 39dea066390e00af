"""A LangChain and a LlamaIndex agent's traces in real OTLP backends, asked back through their APIs.

    make peers
    .venv/bin/python tests/peers/backends.py --keep     # leaves each backend running until Enter, to look at its pages

It makes an environment for each backend in `.venv-peers/` (a minute each), starts it on loopback, runs `maestro demo` and
a LlamaIndex agent against it, and fails unless every call of their ledgers is there: below the same agents and tools, at
the same cost, of the right kind, with its tokens and whom it was for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from servers import Mlflow, Phoenix, Seen, Server
from telemetry import environment

from maestro_core import Maestro

HERE = Path(__file__).parent
ARRIVAL_S = 60
KINDS = {"chat": "llm", "execute_tool": "tool", "invoke_agent": "agent"}
WANTED = ("gen_ai.agent.name", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "maestro.team")

# The agents and tools above a call, from the outermost, and its cost in nano-dollars.
Place = tuple[tuple[tuple[str, str], ...], int]
STEPS = {"invoke_agent": "agent", "execute_tool": "tool"}


def told(ledger: str) -> Counter[Place]:
    """Return where each call stands, by the ledger."""
    maestro = Maestro(ledger=ledger)
    records = [record for record in maestro.ledger.records() if record.kind == "settled"]
    maestro.close()
    return Counter((tuple(record.attribution.path), record.cost_nanos) for record in records)


def shown(spans: list[Seen]) -> Counter[Place]:
    """Return where each call stands, by the backend."""
    by_id = {span.id: span for span in spans}

    def path(span: Seen) -> tuple[tuple[str, str], ...]:
        above = by_id.get(span.parent_id or "")
        operation, _, name = span.name.partition(" ")
        own = ((STEPS[operation], name),) if operation in STEPS else ()
        return (*(path(above) if above else ()), *own)

    costs = {span.id: span.attributes.get("maestro.cost.nano_usd") for span in spans}
    return Counter((path(span), int(costs[span.id])) for span in spans if costs[span.id] is not None)


def faults(spans: list[Seen]) -> list[str]:
    """Return what is wrong with single spans."""
    ids = {span.id for span in spans}
    found = [
        f"{span.name} has lost its parent" for span in spans if span.parent_id and span.parent_id not in ids
    ]
    for span in spans:
        kind = KINDS[span.name.partition(" ")[0]]
        if span.kind not in (kind, {"llm": "chat_model"}.get(kind)):
            found.append(f"{span.name} is shown as {span.kind}")
        if "maestro.cost.nano_usd" in span.attributes:
            found += [f"{span.name} has no {name}" for name in WANTED if name not in span.attributes]
            if (
                round(float(span.attributes["gen_ai.usage.cost"]) * 1e9)
                != span.attributes["maestro.cost.nano_usd"]
            ):
                found.append(f"{span.name} has two costs")
    return found


def run(server: Server, *command: str) -> str:
    """Run an agent whose spans go to the backend; return what it prints."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": server.url,
        "OTEL_METRICS_EXPORTER": "none",  # it takes traces alone
        **server.settings,
    }
    done = subprocess.run(
        [sys.executable, *command],
        check=False,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        sys.exit(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def check(kind: type[Server], *, keep: bool) -> list[str]:
    """Run both agents against a backend; return what is wrong."""
    python = environment(kind.title.lower(), kind.packages)
    with tempfile.TemporaryDirectory() as folder, kind(python, folder) as server:
        ledgers = [f"sqlite:///{folder}/{name}.db" for name in ("langchain", "llamaindex")]
        run(server, "-m", "maestro_core.cli", "demo", "--ledger", ledgers[0])
        run(server, str(HERE / "worker_llamaindex.py"), ledgers[1])
        truth = told(ledgers[0]) + told(ledgers[1])
        spans: list[Seen] = []
        until_s = time.monotonic() + ARRIVAL_S
        while time.monotonic() < until_s and shown(spans) != truth:
            time.sleep(1)  # it takes spans in at its own pace
            spans = server.spans()
        wrong = faults(spans)
        there = shown(spans)
        wrong += [f"missing: {place}" for place in truth - there] + [f"too much: {p}" for p in there - truth]
        dollars = sum(nanos * count for (_, nanos), count in there.items()) / 1e9
        kinds = dict(Counter(span.kind for span in spans))
        print(
            f"{kind.title}: {len(spans)} spans {kinds}, {there.total()} calls that cost ${dollars:.9f}; wrong: {wrong}"
        )
        if keep:
            input(f"{kind.title} is at {server.url}{server.ui}; Enter ends it ")
    return [f"{kind.title}: {each}" for each in wrong]


def main() -> None:
    keep = "--keep" in sys.argv[1:]
    wrong = [each for kind in (Phoenix, Mlflow) for each in check(kind, keep=keep)]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
