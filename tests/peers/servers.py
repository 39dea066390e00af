"""Trace backends that install here: started on loopback, and asked what they have through their own APIs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
PATIENCE_S = 180


@dataclass(frozen=True)
class Seen:
    """A span as a backend has it. `kind` is its own word for what the span is; `attributes` are as they were sent."""

    id: str
    parent_id: str | None
    name: str
    kind: str
    attributes: Mapping[str, Any]


class Server:
    """A backend that runs while the `with` block does.

    Args:
        python: The interpreter of the environment that it is installed in.
        folder: Where it keeps its data.
    """

    title: ClassVar[str]
    packages: ClassVar[list[str]]
    health: ClassVar[str]
    ui: ClassVar[str]  # the page that shows the traces
    settings: ClassVar[dict[str, str]] = {}  # what an application sets besides the endpoint

    def __init__(self, python: Path, folder: str) -> None:
        self.python, self.folder = python, folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Return how it is started."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return its own settings."""
        return {}

    def spans(self) -> list[Seen]:
        """Return every span that it has, asked through its API."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        # Of its own group, because some have workers that outlive whom they were started by.
        self._process = subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env={**os.environ, **self.environment()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            try:
                urllib.request.urlopen(self.url + self.health, timeout=5).close()
            except OSError:
                time.sleep(1)
            else:
                return self
        self.__exit__()
        sys.exit(f"{self.title} did not start")

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Phoenix(Server):
    """Arize Phoenix; takes traces alone, in whatever way OTLP comes."""

    title = "Phoenix"
    packages: ClassVar = ["arize-phoenix==20.26.1"]
    health = "/healthz"
    ui = "/projects"
    query = (
        "{projects{edges{node{spans(first:1000){edges{node{name spanKind parentId spanId attributes}}}}}}}"
    )

    def command(self) -> list[str]:
        return [str(self.python.with_name("phoenix")), "serve"]

    def environment(self) -> dict[str, str]:
        return {
            "PHOENIX_WORKING_DIR": self.folder,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(self.port),
            "PHOENIX_GRPC_PORT": str(free_port()),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        }

    def spans(self) -> list[Seen]:
        body = json.dumps({"query": self.query}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)["data"]["projects"]["edges"]
        nodes = [edge["node"] for project in found for edge in project["node"]["spans"]["edges"]]
        return [
            Seen(
                node["spanId"],
                node["parentId"],
                node["name"],
                node["spanKind"].lower(),
                flat(json.loads(node["attributes"])),
            )
            for node in nodes
        ]


class Mlflow(Server):
    """MLflow's server on SQLite; takes traces alone, over HTTP, for an experiment that a header names."""

    title = "MLflow"
    packages: ClassVar = ["mlflow==3.17.2"]
    health = "/health"
    ui = "/#/experiments/0/traces"
    settings: ClassVar = {"OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=0"}

    def command(self) -> list[str]:
        store = f"sqlite:///{self.folder}/mlflow.db"
        return [
            str(self.python.with_name("mlflow")), "server", "--workers", "1", "--host", "127.0.0.1",
            "--port", str(self.port), "--backend-store-uri", store,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {"MLFLOW_DISABLE_TELEMETRY": "true"}

    def spans(self) -> list[Seen]:
        worker = [str(self.python), str(HERE / "worker_mlflow.py"), self.url]
        done = subprocess.run(worker, check=True, capture_output=True, text=True, timeout=120)
        return [Seen(**each) for each in json.loads(done.stdout.splitlines()[-1])]


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return attributes under the dotted names that they were sent with."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
