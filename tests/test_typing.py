"""The public names are typed as documented: `tests/typing/api.py` passes mypy, in its strictest form."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def mypy(*arguments, cwd=ROOT):
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--no-error-summary",
    ]
    run = subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr


def test_the_public_api_is_typed():
    # mypy reports a `type: ignore` that is not needed as well, so that what must be an error is one.
    assert mypy("--follow-imports=silent", "tests/typing/api.py") == ""


def test_a_wrong_use_would_be_reported(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from maestro_core import Cap\nCap(0.5)\nreveal_type(Cap('5').limit)\n", encoding="utf-8"
    )
    said = mypy("--follow-imports=silent", str(wrong))
    assert "[arg-type]" in said
    assert "Decimal" in said
