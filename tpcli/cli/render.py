"""What commands print: JSON, tables, numbers, progress bars."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.cli.text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from tpcli.data import ImageData
    from tpcli.measures.choice import Task

from tpcli.text import CONVENTION as CONVENTION

WIDTH = 120
"""Columns of a table that is not printed on a terminal."""


def quiet() -> None:
    """Keep libraries' warnings off the terminal; what matters is said by tpcli itself."""
    warnings.filterwarnings("ignore")
    for name in ("timm", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler says when it starts


def print_json(document: Any) -> None:
    """One document on stdout."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    spare: Sequence[str] = (),
) -> None:
    """A table on stdout; the first column to the left, numbers to the right, no cell folded.

    spare: columns that a terminal too narrow for all goes without, the first first.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[visible(cell) for cell in row] for row in (columns, *rows)]
    by_column = zip(columns, zip(*cells, strict=True), strict=True)
    needed = {name: max(map(cell_len, column)) + 3 for name, column in by_column}
    console = Console()
    room = console.width if console.is_terminal else max(WIDTH, 1 + sum(needed.values()))
    left_out: list[str] = []
    for column in spare:
        if 1 + sum(needed.values()) <= room:
            break
        left_out.append(column)
        del needed[column]
    if left_out:
        caption += f" No room here for: {', '.join(left_out)} (--json has all)."
    width = max(room, 1 + sum(needed.values()))
    table = Table(
        title=Text(visible(title)),
        caption=Text(visible(caption)),
        title_justify="left",
        caption_justify="left",
    )
    for column in needed:
        table.add_column(column, justify="left" if column == columns[0] else "right", no_wrap=True)
    for row in cells[1:]:
        table.add_row(*(Text(cell) for cell, c in zip(row, columns, strict=True) if c in needed))
    # what a terminal has no room for, it wraps itself; rich would cut it off
    Console(width=width).print(table, crop=False)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Pairs of name and value on stdout, aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {visible(value)}")


def some(names: Sequence[str], most: int = 5) -> str:
    """How many names there are, and the first of them."""
    return f"{len(names)} left out: {', '.join(names[:most])}{' ...' if len(names) > most else ''}"


def say_left_out(*sources: ImageData | None) -> None:
    """On stderr, what lies among the images and does not count."""
    from tpcli.data import describe

    for data in sources:
        if data is not None and data.left_out:
            text = f"left out of {data.root}: {describe(data.left_out)}"
            sys.stderr.write(visible(text) + "\n")


def say(text: str) -> None:
    """A line on stdout."""
    print(visible(text))


def eval_command(model: str | Path, data: str, schedule: Path | None = None) -> str:
    """The command that measures what was just made."""
    more = ["--schedule", str(schedule)] if schedule else []
    return shlex.join(["tpcli", "eval", str(model), "--data", data, *more])


def gigas(flops: float) -> str:
    """FLOPs as GFLOPs, with as many digits as tell small models apart."""
    return f"{flops / 1e9:.3f}" if flops >= 1e8 else f"{flops / 1e9:.4f}"


def make_bar(console: Console, *more: ProgressColumn, bar_width: int | None = 40) -> Progress:
    """A progress bar: what it does, how far it is, `more`, and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=bar_width),
        MofNCompleteColumn(),
        *more,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet or not console.is_terminal,
    )


def say_passed_over(task: Task) -> None:
    """On stderr, why the measure that is taken where it can be is not."""
    if task.passed_over:
        text = f"measured by {task.measure}, as {task.passed_over.partition(';')[0].rstrip('.')}"
        sys.stderr.write(visible(text) + "\n")


@contextmanager
def progress_bars(description: str) -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    """A bar on stderr for one thing after another; yields what begins the next, and returns what
    advances it."""
    from rich.console import Console

    with make_bar(Console(stderr=True)) as bar:
        task = bar.add_task("")

        def begin(label: str, total: int | None) -> Callable[[int], None]:
            text = visible(f"{description} {label}".strip())
            bar.reset(task, description=text, total=total)
            return lambda amount: bar.advance(task, amount)

        yield begin


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function that advances it."""
    from rich.console import Console

    with make_bar(Console(stderr=True)) as bar:
        task = bar.add_task(visible(description), total=total)
        yield lambda amount: bar.advance(task, amount)
