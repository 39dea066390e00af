"""How tables and trees look: columns on a terminal, plain aligned text everywhere else.

Values come from users and models. They are shown as they are, never read as markup, and characters that would steer a
terminal are spelled out.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Branches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .types import Tree

__all__ = ["clean", "print_note", "print_table", "print_tree"]

# A column of text may be folded down to this width; a number is never folded or cut.
_LEAST_TEXT = 8
# Wide enough for any table: what is piped is neither folded nor cut.
_UNBOUNDED = 10_000


def clean(value: object) -> str:
    r"""Return a value as one line of text in which control and other invisible characters are spelled out (`\x1b`)."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int,
    total: Sequence[str] = (),
) -> None:
    """Print a table to standard output.

    Args:
        header: The columns' names.
        rows: The cells as text.
        text_columns: How many columns, from the left, are text; the others are numbers, set flush right.
        total: A last line that sums up the others, if there is one.
    """
    console = _console()
    table = Table(
        box=box.SIMPLE if console.is_terminal else None,
        show_edge=False,
        header_style="bold",
        footer_style="bold",
        pad_edge=False,
        # Two spaces between columns either way: a box brings one of its own.
        padding=(0, 1 if console.is_terminal else 2, 0, 0),
        show_footer=bool(total),
    )
    for place, name in enumerate(header):
        footer = Text(clean(total[place])) if total else ""
        if place < text_columns:
            table.add_column(Text(clean(name)), footer, overflow="fold")
        else:
            table.add_column(Text(clean(name)), footer, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console.width = max(console.width, _least_width([header, *rows, total], text_columns))
    _print(console, table)


def print_tree(tree: Tree) -> None:
    """Print a run as a tree, to standard output."""
    console = _console()
    if console.is_terminal:
        _print(console, _branches(tree))
    else:
        _print(console, Text("\n".join(map(clean, tree.lines()))))


def print_note(text: str) -> None:
    """Print a remark that only people read: to a terminal, and not into a pipe."""
    console = _console()
    if console.is_terminal:
        console.print(Text(clean(text)), style="dim", soft_wrap=False)


def _console() -> Console:
    # NO_COLOR (https://no-color.org) asks for no colour; without a colour system rich writes no escapes at all.
    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)
    if not console.is_terminal:
        console.width = _UNBOUNDED
    return console


def _print(console: Console, renderable: Table | Branches | Text) -> None:
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:
        console.print(renderable)
    # Padding up to the column's width would only be noise to whatever reads the pipe.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def _least_width(lines: Sequence[Sequence[str]], text_columns: int) -> int:
    widths = [max(cell_len(clean(line[i])) for line in lines if line) for i in range(len(lines[0]))]
    text = sum(min(width, _LEAST_TEXT) for width in widths[:text_columns])
    return text + sum(widths[text_columns:]) + 2 * len(widths)


def _branches(tree: Tree) -> Branches:
    head, *refusals = tree.lines()[: 1 + len(tree.refusals)]
    branches = Branches(Text(clean(head), style="" if tree.kind == "model" else "bold"))
    for refusal in refusals:
        branches.add(Text(clean(refusal.strip()), style="red"))
    for child in tree.children:
        branches.children.append(_branches(child))
    return branches
