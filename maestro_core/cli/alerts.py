"""What was told, and whether it would be: `alerts`, `watch`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._shared import AsJson, check_times, echo_json, open_maestro

if TYPE_CHECKING:
    from maestro_core.maestro import Maestro
    from maestro_core.types import Note

__all__ = ["alerts", "watch"]

_EVERY_S = 2.0
_FIELDS = ("kind", "scope", "since", "excess_usd", "projected_usd", "run_id", "model", "tool", "stop")


def alerts(
    *,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="24h, 7d, hour, day, week, month, all, or a time with a zone.")
    ] = "7d",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on, and print new ones as they come.")
    ] = False,
    test: Annotated[bool, typer.Option("--test", help="Send one to every place that alerts go to.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the alerts that were told, oldest first; or try whether one arrives."""
    from maestro_core.queries import parse_time

    check_times(since=since)
    with open_maestro() as maestro:
        if test:
            _test(maestro, as_json=as_json)
            return
        since_us = parse_time(since, maestro.ledger.now_us(), maestro.settings.time_zone, name="since")
        found = maestro.ledger.notes("alert", since_us=since_us)
        if as_json and not follow:
            echo_json([_alert_json(note) for note in found])
            return
        _print(found, as_json=as_json)
        if not found and not follow:
            typer.echo(f"no alerts since {since}", err=True)
        if follow:
            _follow(maestro, found, since_us, as_json=as_json)


def watch(
    *,
    once: Annotated[bool, typer.Option("--once", help="Look once and exit; for cron, every minute.")] = False,
) -> None:
    """Look for spikes and leaks in a ledger that others write to, and for caps and budgets that fill up.

    One process on a ledger watches at a time; the others stand by.
    """
    with open_maestro() as maestro:
        if maestro.watch is None:
            raise ValueError("alerts.detect is off in the settings; set it to true, or do not start a watch")
        maestro.thresholds.look()
        if once:
            looked = maestro.watch.look()
            maestro.alerts.flush()
            said = "looked at" if looked else "another process watches"
            typer.echo(f"{said} {maestro.ledger.url}", err=True)
            return
        typer.echo(f"watching {maestro.ledger.url}; Ctrl-C ends it", err=True)
        maestro.watch.start()
        try:
            while True:
                time.sleep(_EVERY_S)
                maestro.thresholds.look()
        except KeyboardInterrupt:
            typer.echo("the watch has ended", err=True)


def _test(maestro: Maestro, *, as_json: bool) -> None:
    outcomes = maestro.alerts.test(maestro.ledger.now_us())
    if as_json:
        echo_json([{"sink": sink, "error": error} for sink, error in outcomes])
    else:
        for sink, error in outcomes:
            typer.echo(f"{sink}: {error or 'delivered'}")
    if any(error for _, error in outcomes):
        raise typer.Exit(1)


def _follow(maestro: Maestro, found: list[Note], since_us: int, *, as_json: bool) -> None:
    seen = {note.key for note in found}
    try:
        while True:
            time.sleep(_EVERY_S)
            new = [note for note in maestro.ledger.notes("alert", since_us=since_us) if note.key not in seen]
            seen.update(note.key for note in new)
            _print(new, as_json=as_json)
    except KeyboardInterrupt:
        return


def _print(notes: list[Note], *, as_json: bool) -> None:
    import json

    from maestro_core.clock import from_micros
    from maestro_core.terminal import clean

    for note in notes:
        if as_json:
            typer.echo(json.dumps(_alert_json(note)))
        else:
            typer.echo(f"{from_micros(note.at_us):%Y-%m-%d %H:%M:%S}  {clean(note.body['text'])}")


def _alert_json(note: Note) -> dict[str, Any]:
    return {name: note.body[name] for name in _FIELDS}
