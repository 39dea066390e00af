"""Real agents on the bundled stand-in provider: `demo`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from maestro_core.errors import MaestroError, SettingsError

__all__ = ["demo"]


def demo(
    *,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where to write; else a temporary file, whose path it prints."),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Call the real provider, with your own key.")] = False,
) -> None:
    """Run real agents under caps on a stand-in provider.

    The provider is a server on this machine: no keys, no costs.
    """
    try:
        # By name: the core knows its adapters only here, and only once someone asks for the demo.
        run = import_module("maestro_langchain.demo").run
        code = run(ledger=ledger, live=live)
    except SettingsError as error:
        if ledger is None:
            raise
        raise typer.BadParameter(str(error), param_hint="--ledger") from None
    except ImportError as error:
        raise MaestroError(f'the demo cannot start: {error}; pip install "maestro-finops[demo]"') from None
    raise typer.Exit(code)
