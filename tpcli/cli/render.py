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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.config.measures import MEASURES
from tpcli.system.text import CONVENTION as CONVENTION
from tpcli.system.text import visible

from .verbosity import console, note

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

    from tpcli.data import ImageData
    from tpcli.evaluation.choose import Task
    from tpcli.pareto import SweepResult
    from tpcli.report import ReportContext
    from tpcli.surgery import PoolingSpec


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


def print_records(
    title: str,
    records: Sequence[Mapping[str, str]],
    caption: str = "",
    spare: Sequence[str] = (),
    group: str | None = None,
) -> None:
    """`print_table` of rows that say which cell is of which column."""
    rows = [list(record.values()) for record in records]
    print_table(title, list(records[0]), rows, caption, spare, group)


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


def gigas_of(flops: float, base: float, more: str) -> str:
    """GFLOPs of a pooled model beside those of the unpooled one, and their share."""
    return f"{gigas(flops)} of {gigas(base)} ({100 * flops / base:.1f}%{more})"


def how_pooled(spec: PoolingSpec | None) -> dict[str, Any]:
    """What JSON says of how a model is pooled."""
    return {
        "schedule": spec.schedule.name if spec else "none",
        "tokens": list(spec.schedule.tokens) if spec else [],
        "method": spec.options.to_dict() if spec else {},
    }


def pooled_facts(model: str, spec: PoolingSpec) -> list[tuple[str, str]]:
    """What is printed of a model and how it is pooled."""
    tokens = ", ".join(map(str, spec.schedule.tokens))
    return [
        ("model", f"{model}, pooled by {spec.options.method}"),
        ("schedule", f"{spec.schedule.name}: {tokens}"),
    ]


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
    with progress_bars(description) as begin:
        yield begin("", total)


def print_sweep(result: SweepResult, context: ReportContext, written: Sequence[str]) -> None:
    """A table for each model, the headlines, commands of the frontier, and the verdict."""
    from tpcli.report.pareto import table_rows

    measure = MEASURES[result.points[0].measure]
    names = {
        "method": "method",
        "budget": "budget",
        "gflops": "GFLOPs",
        "ratio": "of base",
        measure.name: measure.label,
        "interval": "95% interval",
        "difference": "difference",
        "speed": "images/s",
        "latency_ms": "ms",
        "speedup": "speed-up",
    }
    spare = ["images/s", "95% interval", "GFLOPs", "ms", "budget", "difference"]
    everything = table_rows(result)
    keys = [key for key in names if key in everything[0]]
    for model in dict.fromkeys(row["model"] for row in everything):
        records = [{names[k]: row[k] for k in keys} for row in everything if row["model"] == model]
        print_records(f"Token Pooling of {model}", records, spare=spare, group="method")
    say(f"{context.count} images of {context.data}. {CONVENTION}.")
    for entry in result.headlines:
        for headline in entry.both:
            say(headline.words)
    cheap_first = sorted(result.frontier, key=lambda p: p.gflops)
    commands = {context.command_for(p): p for p in cheap_first if not p.is_base}
    if commands:
        print("\nThe frontier, from cheap to dear:")
    for command, p in commands.items():
        share = f"{100 * p.gflops_ratio:.0f}% of the GFLOPs"
        say(f"# {p.model}, {p.curve}: {share}, {measure.label} {p.score:.2f}%")
        say(command)
    if advice := result.recommendation:
        print()
        say(advice.words)
        if advice.point is not None:
            say(context.command_for(advice.point))
    say("written: " + ", ".join(written))
