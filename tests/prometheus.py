"""A real Prometheus on loopback, where one is installed, and what it answers to PromQL."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx

__all__ = ["Prometheus", "free_port", "installed"]

# Where `make peers` unpacks the Debian package.
_UNPACKED = Path(__file__).parents[1] / ".venv-peers" / "prometheus" / "usr" / "bin" / "prometheus"
_PATIENCE_S = 30


def installed() -> str | None:
    """Return the server's path, or None where there is none."""
    return shutil.which("prometheus") or (str(_UNPACKED) if _UNPACKED.exists() else None)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """Scrapes `targets` (ports on loopback) twice a second, and follows a file of rules, while the `with` block runs."""

    def __init__(self, folder: Path, targets: list[int], rules: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": "agents", "static_configs": [{"targets": [f"127.0.0.1:{t}" for t in targets]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config), "utf-8")  # JSON is YAML

    def __enter__(self):
        self._log = (self._folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                installed(), f"--config.file={self._folder}/prometheus.yml", f"--storage.tsdb.path={self._folder}/data",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        until_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until_s and self._process.poll() is None:
            try:
                httpx.get(f"{self.url}/-/ready", timeout=5).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return self
        self.__exit__()
        raise AssertionError((self._folder / "prometheus.log").read_text("utf-8"))

    def __exit__(self, *_):
        self._process.kill()  # its data is thrown away
        self._process.wait()
        self._log.close()

    def query(self, expression):
        """Return what an instant query finds, as [(labels, value)]; an expression that it cannot read is an error."""
        found = self._get("query", query=expression)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def total(self, expression):
        """Return the sum of what a query finds."""
        return sum(value for _, value in self.query(expression))

    def rules(self):
        """Return every rule, by name."""
        return {rule["name"]: rule for group in self._get("rules")["groups"] for rule in group["rules"]}

    def comes(self, expression, value):
        """Return whether a query's sum becomes this in time, to the nano-dollar."""
        until_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until_s:
            if abs(self.total(expression) - value) < 1e-9 * max(1, value):
                return True
            time.sleep(0.1)
        return False

    def _get(self, what, **arguments):
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=arguments, timeout=30).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {arguments}"
        return answer["data"]
