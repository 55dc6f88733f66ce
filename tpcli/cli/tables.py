"""Tables that fit: no cell is folded or cut, what there is no room for is left out and named."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from tpcli.cli.text import visible

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 120
"""Columns of a table that is not printed on a terminal, at least."""
BETWEEN = 2
"""Blanks between columns."""


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    spare: Sequence[str] = (),
    group: str | None = None,
) -> None:
    """A table on stdout: words to the left, numbers to the right.

    Args:
        spare: columns that a terminal too narrow for all goes without, the first first; if that is
            not enough, others follow from the right, but for the first column.
        group: the column whose changes are set apart by an empty line.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    room = console.width if console.is_terminal else max(WIDTH, needed(columns, rows))
    table, gone = fitting_table(columns, rows, room, spare)
    if gone:
        caption += f" No room here for: {', '.join(gone)} (--json has all)."
    if group is not None:
        keys = [row[columns.index(group)] for row in rows]
        for i, (key, following) in enumerate(pairwise(keys)):
            table.rows[i].end_section = key != following
    # a name that a terminal has no room for, it wraps itself; rich would cut it off
    wide = Console(width=max(room, needed(columns[:1], rows)))
    text = {"width": room} if console.is_terminal else {"soft_wrap": True}
    wide.print(Text(visible(title), style="bold"), **text)
    wide.print(table, crop=False)
    if caption:
        wide.print(Text(visible(caption.strip()), style="dim"), **text)
    wide.print()


def fitting_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], room: int, spare: Sequence[str] = ()
) -> tuple[Table, list[str]]:
    """A table of the columns that fit into `room` characters, and those that do not.

    Nothing in it is markup, a control character, folded or cut. The first column is always there.
    """
    left, gone = list(range(len(columns))), []
    order = [columns.index(name) for name in spare if name in columns]
    for i in [*order, *(i for i in reversed(left) if i not in order)]:
        shown = [[line[j] for j in left] for line in (columns, *rows)]
        if i == 0 or needed(shown[0], shown[1:]) <= room:
            break
        left.remove(i)
        gone.append(columns[i])
    shown = [[line[j] for j in left] for line in (columns, *rows)]
    return _table(shown[0], shown[1:]), gone


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, BETWEEN - 1), show_edge=False)
    for i, name in enumerate(columns):
        is_number = i > 0 and all(row[i][:1] in "+-0123456789" for row in rows)
        heading = Text(visible(name))
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def needed(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that the widest row takes."""
    from rich.cells import cell_len

    lines = [columns, *rows]
    widths = [max(cell_len(visible(line[i])) for line in lines) for i in range(len(columns))]
    return sum(widths) + (BETWEEN + 1) * (len(widths) - 1)
