"""A real Prometheus, and every query of the ready views against it.

    make peers
    .venv/bin/python tests/peers/metrics.py --fetch     # only unpacks the server

Where none is installed, Debian's package (19 MB) is unpacked into `.venv-peers/prometheus`; nothing is installed, and no
service starts. It cannot be had where `apt-get` is not; then `tests/test_prometheus.py` is skipped.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from prometheus import installed  # noqa: E402 - it stands beside the tests

FOLDER = ROOT / ".venv-peers" / "prometheus"


def fetch() -> None:
    """Unpack the server, unless there is one."""
    if installed():
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=True)
        (package,) = Path(folder).glob("prometheus_*.deb")
        FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--extract", str(package), str(FOLDER)], check=True)


def main() -> None:
    try:
        fetch()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"no Prometheus: {error}. Install one, so that `prometheus` is on the PATH")
    print("Prometheus:", installed())
    if "--fetch" not in sys.argv[1:]:
        sys.exit(
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "tests/test_prometheus.py"], cwd=ROOT, check=False
            ).returncode
        )


if __name__ == "__main__":
    main()
