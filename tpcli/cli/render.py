"""What commands print: JSON, tables, numbers, progress bars."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.cli.tables import print_table as print_table
from tpcli.cli.text import visible
from tpcli.cli.voice import console, note

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

    from tpcli.data import ImageData
    from tpcli.measures.choice import Task

from tpcli.text import CONVENTION as CONVENTION


def quiet() -> None:
    """Keep libraries' warnings off the terminal; what matters is said by tpcli itself."""
    warnings.filterwarnings("ignore")
    for name in ("timm", "huggingface_hub", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler says when it starts


def print_json(document: Any) -> None:
    """One document on stdout."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Pairs of name and value on stdout, aligned.

    On a terminal a value goes on below itself, broken between words; one that holds a command stays
    as it is, to be copied.
    """
    width = max(len(name) for name, _ in facts)
    room = None
    if sys.stdout.isatty():
        room = max(20, shutil.get_terminal_size().columns - width - 2)
    for name, value in facts:
        lines = [visible(value)]
        if room is not None and "tpcli " not in value:
            lines = textwrap.wrap(
                lines[0], room, break_long_words=False, break_on_hyphens=False
            ) or [""]
        print(f"{name:<{width}}  " + f"\n{'':<{width}}  ".join(lines))


def some(names: Sequence[str], most: int = 5) -> str:
    """How many names there are, and the first of them."""
    return f"{len(names)} left out: {', '.join(names[:most])}{' ...' if len(names) > most else ''}"


def say_left_out(*sources: ImageData | None) -> None:
    """On stderr, what lies among the images and does not count."""
    from tpcli.data import describe

    for data in sources:
        if data is not None and data.left_out:
            note(f"left out of {data.root}: {describe(data.left_out)}")


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
        note(f"measured by {task.measure}, as {task.passed_over.partition(';')[0].rstrip('.')}")


@contextmanager
def progress_bars(description: str) -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    """A bar on stderr for one thing after another; yields what begins the next, and returns what
    advances it."""
    with make_bar(console()) as bar:
        task = bar.add_task("")

        def begin(label: str, total: int | None) -> Callable[[int], None]:
            text = visible(f"{description} {label}".strip())
            bar.reset(task, description=text, total=total)
            return lambda amount: bar.advance(task, amount)

        yield begin


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function that advances it."""
    with make_bar(console()) as bar:
        task = bar.add_task(visible(description), total=total)
        yield lambda amount: bar.advance(task, amount)
