"""The demo's traces in a real OTLP backend, Arize Phoenix, asked back through its API.

    make peers

It makes `.venv-peers/phoenix/` (about a minute), starts Phoenix on loopback, runs `maestro demo` against it, and fails if
a span of the tree is missing or the costs do not add up to the ledger.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from telemetry import environment

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180
SPANS = (
    "{projects{edges{node{name spans(first:1000){edges{node{name spanKind parentId spanId attributes}}}}}}}"
)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(phoenix: Path, folder: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start Phoenix; return it and its address once it answers."""
    port = free_port()
    settings = {
        "PHOENIX_WORKING_DIR": folder,
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    server = subprocess.Popen(
        [phoenix, "serve"],
        env={**os.environ, **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url, until_s = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return server, url
    server.kill()
    sys.exit("Phoenix did not start")


def spans(url: str) -> list[dict[str, Any]]:
    """Return every span that the backend has."""
    body = json.dumps({"query": SPANS}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)["data"]["projects"]["edges"]
    nodes = [edge["node"] for project in found for edge in project["node"]["spans"]["edges"]]
    return [{**node, "attributes": json.loads(node["attributes"])} for node in nodes]


def main() -> None:
    python = environment("phoenix", ["arize-phoenix==20.26.1"])
    with tempfile.TemporaryDirectory() as folder:
        server, url = started(python.with_name("phoenix"), folder)
        try:
            settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_METRICS_EXPORTER": "none"}
            demo = subprocess.run(
                [sys.executable, "-m", "maestro_core.cli", "demo"],
                env={**os.environ, **settings}, check=True, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            (said,) = re.findall(r"by Maestro's ledger:\s+\$([\d.]+)", demo.stdout)
            ledger, found = Decimal(said), []
            until_s = time.monotonic() + 60
            while time.monotonic() < until_s and cost(found) != ledger:
                time.sleep(1)  # it takes spans in at its own pace
                found = spans(url)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    by_id = {span["spanId"]: span for span in found}
    orphans = [span["name"] for span in found if span["parentId"] and span["parentId"] not in by_id]
    kinds = Counter(span["spanKind"] for span in found)
    print(
        f"Phoenix has {len(found)} spans {dict(kinds)}; costs add up to ${cost(found)}, the ledger says ${ledger}"
    )
    if cost(found) != ledger or orphans or not {"llm", "tool", "agent"} <= kinds.keys():
        sys.exit(f"that is wrong; spans without their parent: {orphans}")


def cost(found: list[dict[str, Any]]) -> Decimal:
    """Return the sum of the costs on spans, in dollars."""
    each = [span["attributes"].get("maestro", {}).get("cost", {}).get("nano_usd", 0) for span in found]
    return Decimal(sum(each)) / 10**9


if __name__ == "__main__":
    main()
