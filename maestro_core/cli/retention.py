"""Keeping the ledger's file small: `archive`."""

from __future__ import annotations

from datetime import date, datetime, time
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from maestro_core.clock import from_micros
from maestro_core.errors import MaestroError
from maestro_core.money import format_usd, to_usd

from ._shared import AsJson, check_times, echo_json, open_maestro, sqlite_path

if TYPE_CHECKING:
    from maestro_core.maestro import Maestro

__all__ = ["archive"]


def archive(
    *,
    before: Annotated[
        str, typer.Option(metavar="TIME", help="90d, a date in the time_zone setting, or a time with a zone.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to; by default beside the ledger, as maestro-archive.db."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move old records into a file of their own.

    Caps go on counting them, and reports by one dimension stay right. The file is a ledger like any other, and may
    hold what was archived before.
    """
    if not _is_date(before):
        check_times(before=before)
    with open_maestro() as maestro:
        move = getattr(maestro.ledger, "archive", None)  # a plugin's ledger need not know it
        path = sqlite_path(maestro.settings.ledger)
        if move is None or path is None:
            raise MaestroError("only a sqlite:/// ledger has records to archive")
        file = to or path.with_name(f"{path.stem}-archive{path.suffix}")
        moved = move(_before_us(maestro, before), file)
    if as_json:
        echo_json(_json(moved))
        return
    when = f"{from_micros(moved.before_us):%Y-%m-%d %H:%M} UTC"
    typer.echo(
        f"{moved.records:,} records of calls before {when}, {format_usd(moved.cost_nanos)}, moved to {file}"
    )
    if moved.kept:
        typer.echo(f"{moved.kept:,} records from before stay: their calls are not over (maestro doctor)")
    if moved.records:
        typer.echo(f'the file shrinks with: sqlite3 {path} "VACUUM"')


def _before_us(maestro: Maestro, text: str) -> int:
    from maestro_core.queries import parse_time

    zone = maestro.settings.time_zone
    when: str | datetime = text
    if _is_date(text):
        when = datetime.combine(date.fromisoformat(text), time(), ZoneInfo(zone))
    return parse_time(when, maestro.ledger.now_us(), zone, name="before")


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _json(moved: Any) -> dict[str, Any]:
    return {
        "before": from_micros(moved.before_us).isoformat(),
        "file": str(moved.file),
        "records": moved.records,
        "cost": f"{to_usd(moved.cost_nanos):f}",
        "kept": moved.kept,
    }
