"""The command `maestro`: see what was spent, and whether everything is in order.

Exit codes: 0 all is well, 1 an error (one line on standard error says which), 2 the command was called wrongly,
3 a cap is breached. What is heavy is imported by the command that needs it, so that `maestro --help` is quick.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from maestro_core._version import __version__
from maestro_core.errors import MaestroError

from .alerts import alerts, watch
from .demo import demo
from .doctor import doctor
from .history import reconcile, reprice
from .retention import archive
from .sheet import price
from .spend import caps, report, show

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "main"]

ERROR = 1


class _Commands(TyperGroup):
    """Commands whose errors are one line each."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what it raises about its input becomes one line on standard error and exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read the pipe had enough; typer ends quietly
        except (MaestroError, ValueError, LookupError, OSError) as error:
            from maestro_core.terminal import clean

            typer.echo(f"Error: {clean(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(ERROR) from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Help in plain text: it reads well on any terminal and starts without rich.
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature is typer's
    if wanted:
        typer.echo(f"maestro {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _maestro(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A price, an owner and a ceiling on every model call of an agent.

    Settings come from MAESTRO_* in the environment, maestro.toml, or [tool.maestro] in pyproject.toml.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (report, caps, show, price, reprice, reconcile, archive, doctor, demo, alerts, watch):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `maestro` and return its exit code.

    Args:
        arguments: The command line without the program's name; the process's own if None.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks must not turn a report into an error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(None if arguments is None else list(arguments), prog_name="maestro")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
