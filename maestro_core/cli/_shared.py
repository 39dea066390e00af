"""What several commands need: the `--json` option, JSON output, and the ledger that settings name."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_core.errors import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maestro_core.maestro import Maestro

__all__ = ["AsJson", "check_times", "echo_json", "is_there", "open_maestro", "sqlite_path"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; money as decimal strings.")]


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2))


def check_times(**times: str | None) -> None:
    """Look whether options name times at all, before a ledger is opened.

    Raises:
        BadParameter: For one that does not.
    """
    from maestro_core.queries import parse_time
    from maestro_core.terminal import clean

    for name, text in times.items():
        if text is None:
            continue
        try:
            parse_time(text, 0, "UTC", name=f"--{name}")
        except ValueError as error:
            raise typer.BadParameter(clean(str(error))) from None


def sqlite_path(url: str) -> Path | None:
    """Return the file that a ledger's URL names, or None for another kind of ledger."""
    path = url.removeprefix("sqlite:///")
    return Path(path) if path != url and path else None


def is_there(path: Path) -> bool:
    """Return whether there is such a file.

    Raises:
        OSError: If that cannot be known, as in a folder that is closed; `Path.exists` says no then, since Python 3.14.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def open_maestro() -> Iterator[Maestro]:
    """Open the ledger that settings name, to read it.

    Raises:
        SettingsError: For an unknown or malformed setting.
        LedgerUnavailable: If there is no such ledger: reading must not leave an empty one behind.
    """
    from maestro_core.maestro import Maestro
    from maestro_core.settings import Settings

    url = Settings().ledger
    if url == "memory:":
        raise LedgerUnavailable(
            'the ledger "memory:" can be read only by the process that it lives in; '
            "set MAESTRO_LEDGER=sqlite:///maestro.db, there and here"
        )
    path = sqlite_path(url)
    if path is not None and not is_there(path):
        raise LedgerUnavailable(
            f"no ledger at {path.absolute()}; nothing was spent here yet, or set MAESTRO_LEDGER"
        )
    maestro = Maestro()
    try:
        yield maestro
    finally:
        maestro.close()
