"""The bar chart of a benchmark: speed-ups of methods, and what slicing would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpcli.text import visible

from .figure import BASE_COLOUR, COLOURS, PLAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tpcli.benchmark import BenchResult

WIDTH = 0.8


def bench_figure(results: Sequence[BenchResult], title: str) -> Figure:
    """A group of bars for each batch size and dtype, in it one for each method and schedule.

    A black line is the ideal speed-up.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((r.batch_size, r.dtype) for r in results))
    several = len({r.schedule for r in results}) > 1
    ways = list(dict.fromkeys((r.method, r.schedule) for r in results))
    figure = Figure(figsize=(max(5.5, 1.2 + 1.6 * len(groups)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bar = WIDTH / len(ways)
    for i, (method, schedule) in enumerate(ways):
        own = [r for r in results if (r.method, r.schedule) == (method, schedule)]
        name = visible(f"{method}, {schedule}" if several else method)
        left = [groups.index((r.batch_size, r.dtype)) - WIDTH / 2 + i * bar for r in own]
        colour = COLOURS[i % len(COLOURS)]
        bars = axes.bar(
            left, [r.speedup for r in own], 0.94 * bar, align="edge", color=colour, label=name
        )
        axes.bar_label(bars, [f"{r.speedup:.2f}" for r in own], fontsize=8, label_type="center")
        axes.hlines(
            [r.ideal_speedup for r in own],
            left,
            [x + 0.94 * bar for x in left],
            color=BASE_COLOUR,
            label="" if i else "ideal: tokens sliced off",
        )
    axes.axhline(1, color=BASE_COLOUR, linewidth=0.7, linestyle="--", alpha=0.5)
    names = [f"batch {size}\n{dtype}" for size, dtype in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set_ylabel("speed-up over the unpooled model")
    axes.set_title(visible(title), loc="left", fontsize=11, **PLAIN)
    axes.margins(y=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False, ncols=3, fontsize=9)
    return figure
