"""Who spent what, where the caps stand, and how one run went: `report`, `caps`, `show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_core.money import format_usd, to_nanos
from maestro_core.types import Budget

from ._shared import AsJson, check_times, echo_json, open_maestro

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from maestro_core.types import CapStatus, Report, Tree

__all__ = ["caps", "report", "show"]

BREACHED = 3


def report(
    *,
    by: Annotated[str, typer.Option(metavar="DIM[,DIM]", help="Dimensions to split by.")] = "team",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="24h, 7d, hour, day, week, month, all, or a time with a zone.")
    ] = "24h",
    until: Annotated[str | None, typer.Option(metavar="TIME", help="As --since; now, if not given.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="DIM=VALUE", help="Only these calls; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say who spent what, by any dimension.

    Dimensions are team, feature, customer, agent, tool, model, provider, run, and whatever calls were attributed to.
    """
    dimensions, only = _dimensions(by), _pairs(where or ())
    check_times(since=since, until=until)
    with open_maestro() as maestro:
        found = maestro.report(by=dimensions, since=since, until=until, where=only or None)
    if as_json:
        echo_json(_report_json(found))
    else:
        _print_report(found)


def caps(
    *,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 if a cap is breached.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where every bucket of every declared cap and budget stands, and where it will end at its pace."""
    from maestro_core.queries import cap_status

    with open_maestro() as maestro:
        status, declared = maestro.status(), maestro.settings.caps
        budgets = cap_status(maestro.ledger, maestro.settings.budgets, maestro.settings.time_zone)
    if as_json:
        echo_json([_cap_json(each) for each in (*status, *budgets)])
    elif status:
        _print_caps("cap", status)
    if budgets and not as_json:
        _print_caps("budget", budgets)
    if not declared:
        typer.echo(
            "no caps in the settings (those that a program declares itself are not seen here)", err=True
        )
    elif not status:
        typer.echo("no call was counted under a cap yet", err=True)
    for line in dict.fromkeys(_disagreement(each) for each in status if each.other_limits):
        typer.echo(line, err=True)
    breached = [each for each in status if each.headroom <= 0]
    if check and breached:
        from maestro_core.terminal import clean

        for each in breached:
            typer.echo(f"breached: {clean(each.bucket)}", err=True)
        raise typer.Exit(BREACHED)


def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id; `maestro report --by run` lists them.")
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one run: agents, tools, models, refusals, dollars; and why its routed calls went where they did."""
    from ._decisions import decisions_json, told

    with open_maestro() as maestro:
        found = maestro.tree(run)
        records = list(maestro.ledger.records(run=run))
    if as_json:
        decisions = decisions_json(records)
        echo_json(_tree_json(found) | ({"decisions": decisions} if decisions else {}))
        return
    from maestro_core.terminal import print_tree

    print_tree(found)
    for line in told(records):
        typer.echo(line)


def _dimensions(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise typer.BadParameter(
            "name a dimension, for example --by team or --by team,model", param_hint="--by"
        )
    return names


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise typer.BadParameter(
                f"{text!r} is not DIM=VALUE; write for example --where team=growth", param_hint="--where"
            )
        if pairs.setdefault(name, value) != value:
            raise typer.BadParameter(f"{name} cannot have two values at once", param_hint="--where")
    return pairs


def _report_json(found: Report) -> dict[str, Any]:
    return {
        "since": found.since.isoformat() if found.since else None,
        "until": found.until.isoformat(),
        "total": f"{found.total:f}",
        "rows": found.to_dicts(),
    }


def _print_report(found: Report) -> None:
    from maestro_core.ledger._totals import ARCHIVED
    from maestro_core.terminal import print_note, print_table

    header, (*rows, total) = found.cells()
    begin = f"{found.since:%Y-%m-%d %H:%M}" if found.since else "the beginning"
    print_note(f"from {begin} to {found.until:%Y-%m-%d %H:%M} UTC")
    print_table(header, rows, text_columns=len(found.by), total=total)
    if any(row.estimated for row in found.rows):
        print_note("estimated: the part of the cost that no provider reported")
    if any(row.unpriced_calls for row in found.rows):
        print_note("unpriced: calls without a price for all they used; they cost more than is shown")
    if any(ARCHIVED in row.key.values() for row in found.rows):
        typer.echo(
            f"{ARCHIVED}: only sums by one dimension are left here of calls that were archived", err=True
        )


def _cap_json(status: CapStatus) -> dict[str, Any]:
    found = {
        "cap": str(status.cap),
        "bucket": status.bucket,
        **{name: f"{getattr(status, name):f}" for name in ("limit", "spent", "held", "presumed", "headroom")},
        "resets_at": status.resets_at.isoformat() if status.resets_at else None,
        **({"other_limits": [f"{limit:f}" for limit in status.other_limits]} if status.other_limits else {}),
    }
    if isinstance(status.cap, Budget):
        found["kind"] = "budget"
    if status.projected is not None:
        found["projected"] = f"{status.projected:f}"
        found["reached_at"] = status.reached_at.isoformat() if status.reached_at else None
    return found


def _disagreement(status: CapStatus) -> str:
    others = ", ".join(format_usd(to_nanos(limit)) for limit in status.other_limits)
    return f"other processes enforce {others} instead of {status.cap}"


def _print_caps(kind: str, status: Sequence[CapStatus]) -> None:
    from maestro_core.terminal import print_note, print_table

    # What is presumed spent is rare; the column appears when it says something.
    presumed = any(each.presumed for each in status)
    names = ["limit", "spent", "held", *(["presumed"] if presumed else []), "headroom"]
    projected = any(each.projected is not None for each in status)
    rows = [
        [
            each.bucket,
            *(_dollars(getattr(each, name)) for name in names),
            *([_dollars(each.projected) if each.projected is not None else ""] if projected else []),
            f"{each.resets_at:%m-%d %H:%M}" if each.resets_at else "never",
        ]
        for each in status
    ]
    print_table([kind, *names, *(["at its end"] if projected else []), "resets"], rows, text_columns=1)
    print_note("resets are in UTC; held money belongs to calls that are under way")


def _tree_json(tree: Tree) -> dict[str, Any]:
    return {
        "kind": tree.kind,
        "name": tree.name,
        "cost": f"{tree.cost:f}",
        "total": f"{tree.total:f}",
        "calls": tree.calls,
        "refusals": list(tree.refusals),
        "children": [_tree_json(child) for child in tree.children],
    }


def _dollars(amount: Decimal) -> str:
    return format_usd(to_nanos(amount))
