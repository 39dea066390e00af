"""Whether everything is in order: `doctor`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maestro_core.errors import MaestroError
from maestro_core.money import parse_usd, to_usd

from ._examine import examine
from ._shared import AsJson, echo_json, open_maestro

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["doctor"]

# Enough to see what is going on; --json has them all.
_MOST_HOLDS = 10
_HOLDS = {True: "yes", False: "NO", None: "-"}


def doctor(
    *,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Send a call under a cap of $0 through every door, to this machine."),
    ] = False,
    reconcile: Annotated[
        bool,
        typer.Option(
            "--reconcile", help="Put the ledger's counters right where they differ from its journal."
        ),
    ] = False,
    correct: Annotated[
        str | None, typer.Option("--correct", metavar="KEY", help="Journal what a call cost; needs --cost.")
    ] = None,
    cost: Annotated[
        str | None, typer.Option("--cost", metavar="DOLLARS", help="What the call with that key cost.")
    ] = None,
    correct_clock: Annotated[
        bool,
        typer.Option("--correct-clock", help="Set the ledger's time back, if it is ahead of this machine's."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check versions, settings, ledger, price book and plugins.

    Without --reconcile, --correct and --correct-clock it changes nothing, save that what ended processes held is presumed spent. The exit
    code is 1 if there is something to fix.
    """
    corrected = _corrected(correct, cost)
    found = examine(reconcile=reconcile, correct_clock=correct_clock)
    if corrected:
        found["corrected"] = corrected
    if prove:
        found["doors"] = _proofs(found["problems"])
        found["ok"] = not found["problems"]
    if as_json:
        echo_json(found)
    else:
        _print(found)
    if not found["ok"]:
        raise typer.Exit(1)


def _corrected(key: str | None, cost: str | None) -> dict[str, str] | None:
    """Correct a call, if that is asked for."""
    if (key is None) != (cost is None):
        raise typer.BadParameter("--correct KEY and --cost DOLLARS go together")
    if key is None or cost is None:
        return None
    from ._corrections import correct_by_hand

    try:
        nanos = parse_usd(cost, name="--cost")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with open_maestro() as maestro:
        correct_by_hand(maestro, key, nanos)
    return {"key": key, "cost": f"{to_usd(nanos):f}"}


def _proofs(problems: list[str]) -> list[dict[str, Any]]:
    """Try the doors; one that lets a call out under a cap is a problem."""
    try:
        # By name: the core does not import its adapters.
        proofs = import_module("maestro_langchain.prove").prove()
    except ImportError as error:
        message = f'the doors cannot be tried: {error}; pip install "maestro-finops[langchain]"'
        raise MaestroError(message) from None
    problems += [f"{door}: {detail}" for door, ok, detail in proofs if ok is False]
    return [{"door": door, "ok": ok, "detail": detail} for door, ok, detail in proofs]


def _print(found: dict[str, Any]) -> None:
    from maestro_core.terminal import clean

    extras = {name: installed or "not installed" for name, installed in found["extras"].items()}
    _section(["component", "version"], found["versions"].items())
    _section(["extra", "version"], extras.items())
    _section(
        ["setting", "value", "from"],
        [(name, _shown(each["value"]), each["origin"]) for name, each in found["settings"].items()],
    )
    _section(["part", "state"], _parts(found))
    _section(["hold", "since", "model", "dollars", "key"], _holds(found["ledger"]["holds"]), text_columns=3)
    _section(
        ["door", "holds", "why"],
        [(each["door"], _HOLDS[each["ok"]], each["detail"]) for each in found.get("doors", ())],
    )
    if corrected := found.get("corrected"):
        typer.echo(f"corrected: call {clean(corrected['key'])} cost ${corrected['cost']}")
    for line in found["ledger"]["reconciled"]:
        typer.echo(f"reconciled: {clean(line)}")
    for note in found["notes"]:
        typer.echo(f"note: {clean(note)}")
    for problem in found["problems"]:
        typer.echo(f"problem: {clean(problem)}")
    typer.echo("all is well" if found["ok"] else f"to fix: {len(found['problems'])}")


def _section(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int | None = None
) -> None:
    from maestro_core.terminal import print_table

    if lines := list(rows):
        print_table(header, lines, text_columns=text_columns or len(header))
        typer.echo()


def _parts(found: dict[str, Any]) -> list[list[str]]:
    ledger = found["ledger"]
    counts = [
        f"{sum(h['state'] == state for h in ledger['holds'])} {state}" for state in ("held", "presumed")
    ]
    parts = {
        "ledger": ledger["state"],
        "meters": str(len(ledger["meters"])),
        "holds": ", ".join(counts),
        "price book": _price_book(found),
        "plugins": ", ".join(found["plugins"]) or "none",
        "OTLP endpoint": found["otlp_endpoint"]
        or "not set: spans go to the program's own provider, if it has one",
        "attribution": _shown(found["attribution"]),
    }
    return [[name, state] for name, state in parts.items()]


def _price_book(found: dict[str, Any]) -> str:
    if not found["price_book"]:
        return "not readable"
    newest = f", newest price of {found['newest_price']}" if found["newest_price"] else ""
    return f"{found['price_book']}{newest}"


def _holds(holds: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        [h["state"], h["at"], f"{h['provider']}:{h['model']}", f"${h['amount']}", h["key"]] for h in holds
    ]
    more = len(rows) - _MOST_HOLDS
    return [*rows[:_MOST_HOLDS], [f"and {more} more", "", "", "", ""]] if more > 0 else rows


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(value) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
