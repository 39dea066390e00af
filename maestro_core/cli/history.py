"""What was spent, looked at again: `reprice` and `reconcile`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads it when it runs
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_core.clock import from_micros
from maestro_core.money import format_usd, to_usd

from ._shared import AsJson, check_times, echo_json, open_maestro

if TYPE_CHECKING:
    from ._corrections import Repricing
    from ._reconciliation import Comparison, Row

__all__ = ["reconcile", "reprice"]

_TIMES = "24h, 7d, hour, day, week, month, all, or a time with a zone."


def reprice(
    *,
    since: Annotated[str, typer.Option(metavar="TIME", help=_TIMES)],
    until: Annotated[str | None, typer.Option(metavar="TIME", help="As --since; now, if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Price history again with today's price book and settings.

    Calls that cost something else now get a correction in the journal; no row is changed. Each call is priced at its
    own time.
    """
    from maestro_core.prices import price_book
    from maestro_core.queries import parse_time

    from ._corrections import price_again

    check_times(since=since, until=until)
    with open_maestro() as maestro:
        now_us, zone = maestro.ledger.now_us(), maestro.settings.time_zone
        since_us = parse_time(since, now_us, zone, name="since")
        until_us = None if until is None else parse_time(until, now_us, zone, name="until")
        found = price_again(maestro, since_us, until_us, write=not dry_run)
    if as_json:
        period = {
            "since": from_micros(since_us).isoformat() if since_us else None,
            "until": from_micros(now_us if until_us is None else until_us).isoformat(),
        }
        echo_json(period | {"dry_run": dry_run, "price_book": price_book()} | _repricing_json(found))
    else:
        _print_repricing(found, dry_run=dry_run)


def reconcile(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The provider's usage or cost export, CSV.")],
    *,
    provider: Annotated[str, typer.Option(metavar="PROVIDER", help="Whose it is: openai, anthropic, ...")],
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only days (UTC) from then on; " + _TIMES)
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only days before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a provider's export with the ledger, by day and model.

    What the provider has and the ledger has not was spent past Maestro. Nothing is sent anywhere.
    """
    from maestro_core.queries import parse_time

    from ._reconciliation import compare

    check_times(since=since, until=until)
    if not file.is_file():
        raise typer.BadParameter(
            f"there is no file {file.absolute()}; export usage or cost as CSV from {provider}'s console and name that file"
        )
    with open_maestro() as maestro:
        now_us = maestro.ledger.now_us()
        ends = {
            name: None if text is None else from_micros(parse_time(text, now_us, "UTC", name=name))
            for name, text in (("since", since), ("until", until))
        }
        found = compare(file, maestro.ledger, provider, since=ends["since"], until=ends["until"])
    if as_json:
        echo_json(_comparison_json(found, provider))
    else:
        _print_comparison(found)


def _repricing_json(found: Repricing) -> dict[str, Any]:
    changes = found.changes.values()
    before, after = sum(each.before for each in changes), sum(each.after for each in changes)
    return {
        "corrected": sum(each.calls for each in changes),
        "unchanged": found.unchanged,
        "skipped": found.skipped,
        "before": _decimal(before),
        "after": _decimal(after),
        "difference": _decimal(after - before),
        "rows": [
            {
                "provider": provider,
                "model": model,
                "calls": change.calls,
                "before": _decimal(change.before),
                "after": _decimal(change.after),
                "difference": _decimal(change.after - change.before),
            }
            for (provider, model), change in sorted(found.changes.items())
        ],
    }


def _print_repricing(found: Repricing, *, dry_run: bool) -> None:
    from maestro_core.terminal import print_table

    rows = [
        [f"{provider}:{model}", f"{c.calls:,}", format_usd(c.before), format_usd(c.after), format_usd(c.after - c.before)]
        for (provider, model), c in sorted(found.changes.items())
    ]  # fmt: skip
    if rows:
        sums = _repricing_json(found)
        nanos = [sum(getattr(c, name) for c in found.changes.values()) for name in ("before", "after")]
        total = ["total", f"{sums['corrected']:,}", *map(format_usd, (*nanos, nanos[1] - nanos[0]))]
        print_table(["model", "calls", "before", "after", "difference"], rows, text_columns=1, total=total)
        typer.echo("nothing was written" if dry_run else "corrections were written to the journal")
    else:
        typer.echo("nothing to correct")
    if found.skipped:
        typer.echo(
            f"{found.skipped:,} calls cannot be priced again: without usage, or still without a price",
            err=True,
        )


def _comparison_json(found: Comparison, provider: str) -> dict[str, Any]:
    show = _decimal if found.unit == "cost" else int

    def numbers(row: Row) -> dict[str, Any]:
        return {name: show(getattr(row, name)) for name in ("ledger", "provider", "difference")}

    return {
        "provider": provider,
        "format": found.format,
        "unit": found.unit,
        "since": found.since.isoformat(),
        "until": found.until.isoformat(),
        "total": {**numbers(found.total), "unexplained": _share(found.unexplained)},
        "rows": [
            {
                "day": f"{row.day}",
                "model": row.model,
                **numbers(row),
                "unexplained": _share(row.unexplained),
            }
            for row in found.rows
        ],
    }


def _print_comparison(found: Comparison) -> None:
    from maestro_core.terminal import print_note, print_table

    show = format_usd if found.unit == "cost" else _count

    def cells(row: Row, unexplained: float) -> list[str]:
        amounts = [show(getattr(row, name)) for name in ("ledger", "provider", "difference")]
        return [f"{row.day or row.model}", row.model if row.day else "", *amounts, f"{unexplained:.1%}"]

    print_note(f"{found.format}: {found.unit}, {found.since} to {found.until} UTC")
    header = ["day", "model", "ledger", "provider", "difference", "unexplained"]
    rows = [cells(row, row.unexplained) for row in found.rows]
    print_table(header, rows, text_columns=2, total=cells(found.total, found.unexplained))


def _decimal(nanos: int) -> str:
    return f"{to_usd(nanos):f}"


def _count(number: int) -> str:
    return f"{number:,}"


def _share(part: float) -> float:
    return round(part, 6)
