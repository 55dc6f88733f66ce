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
from typing import Any

WIDTH = 120
"""Columns of a table that is not printed on a terminal."""

CONVENTION = "1 multiply-add = 1 FLOP"


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
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None
) -> None:
    """A table on stdout; the first column to the left, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table, width=console.width if console.is_terminal else WIDTH)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Pairs of name and value on stdout, aligned."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")


def eval_command(model: str | Path, data: str, schedule: Path | None = None) -> str:
    """The command that measures what was just made."""
    more = ["--schedule", str(schedule)] if schedule else []
    return shlex.join(["tpcli", "eval", str(model), "--data", data, *more])


def gigas(flops: float) -> str:
    """FLOPs as GFLOPs, with as many digits as tell small models apart."""
    return f"{flops / 1e9:.3f}" if flops >= 1e8 else f"{flops / 1e9:.4f}"


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function that advances it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)
