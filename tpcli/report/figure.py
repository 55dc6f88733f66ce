"""The Pareto figure: the score against GFLOPs, one curve per method."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tpcli.config.measures import MEASURES
from tpcli.pareto import Point
from tpcli.pareto.points import FINETUNED, curve_name, spoken
from tpcli.system.files import MARK
from tpcli.system.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tpcli.bench.compare import BenchResult


# Okabe and Ito's palette, told apart by people with any colour vision; markers differ as well
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
BASE_COLOUR = "#222222"
PAPER, PAPER_FONT = (3.4, 2.5), 7
"""Inches of a figure in one of two columns, and points of its letters."""
TITLE_WIDTH, PAPER_TITLE_WIDTH = 72, 56
"""Characters in a line of a title."""

PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
"""Text in which a name is a name, whatever TeX would make of it."""


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its label, and where a point lies on it."""

    label: str
    of: Callable[[Point], float]


AXES = {
    "gflops": Axis("GFLOPs (multiply-adds) per image", lambda p: p.gflops),
    "throughput": Axis("images per second, in the evaluation", lambda p: p.images_per_second),
    "latency": Axis(
        "milliseconds per image, in the evaluation", lambda p: 1000 / p.images_per_second
    ),
}


BENCHED = {
    "throughput": Axis("images per second", lambda p: 1000 / _timed_ms(p)),
    "latency": Axis("milliseconds per image", lambda p: _timed_ms(p)),
}
"""Axes of speed where points were timed in one interleaved run."""


def _timed_ms(p: Point) -> float:
    return p.time.latency_ms / p.time.bench_batch_size if p.time else math.nan


def axis_for(x: str, points: Sequence[Point]) -> Axis:
    """The axis of that name in `AXES`; of `BENCHED` where all points were timed."""
    timed = all(p.time is not None for p in points)
    return BENCHED[x] if timed and x in BENCHED else AXES[x]


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure of so many inches, outside of any window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=(width, height), layout=layout)).figure


def tidy(axes: Axes) -> None:
    """Pale grid lines, and no frame at the top and the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def spread(points: Sequence[Point]) -> list[list[float]]:
    """Error bars: how far the intervals of points reach down and up."""
    return [[p.score - p.score_lo for p in points], [p.score_hi - p.score for p in points]]


def pareto_figure(points: Sequence[Point], title: str, x: str = "gflops") -> Figure:
    """Draw the points of one model: error bars are 95% intervals, stars are without pooling.

    A method that was fine-tuned has the colour of the same method off the shelf, open markers and a
    dashed line. Where there are more methods than colours, the further ones are dash-dotted.
    x: name in AXES.
    """
    figure = new_figure(7.6, 4.8)
    axes = figure.add_subplot()
    axis = axis_for(x, points)
    bases = [p for p in points if p.is_base]
    curves = list(dict.fromkeys(p.curve for p in points if not p.is_base))
    names = list(dict.fromkeys(curve.removesuffix(FINETUNED) for curve in curves))
    for curve in curves:
        style = names.index(curve.removesuffix(FINETUNED))
        own = sorted((p for p in points if p.curve == curve), key=lambda p: p.gflops)
        base = next(b for b in bases if b.is_base_of(own[0]))
        _draw_curve(axes, own, base, style, spoken(curve), axis)
    _draw_bases(axes, bases, axis)
    axes.set_xlabel(axis.label)
    axes.set_ylabel(MEASURES[points[0].measure].axis)
    write_title(axes, title)
    axes.set_xlim(left=0, right=1.06 * max(axis.of(p) for p in points))
    tidy(axes)
    axes.legend(
        loc="lower left" if x == "throughput" else "lower right",
        frameon=False,
        ncols=1 if len(curves) < 8 else 2,
    )
    return figure


def write_title(axes: Axes, title: str) -> None:
    """Put a title over the axes, in as many lines as it takes."""
    lines = textwrap.wrap(visible(title), TITLE_WIDTH)
    axes.set_title("\n".join(lines), loc="left", fontsize=11, **PLAIN)


def figure_bytes(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of that suffix (.png, .svg or .pdf), marked as ours and undated."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata: dict[str, dict[str, str | None]] = {
        ".png": {"Software": MARK},
        ".svg": {"Creator": MARK, "Date": None},
        ".pdf": {"Creator": MARK, "CreationDate": None},
    }
    with rc_context({"pdf.fonttype": 42}):  # fonts that publishers accept
        figure.savefig(buffer, format=suffix[1:], dpi=160, metadata=metadata[suffix])
    return buffer.getvalue()


def embedded(figure: Figure) -> str:
    """The figure as a .png in base64, for a page without other files."""
    return base64.b64encode(figure_bytes(figure, ".png")).decode()


def small_picture(figure: Figure) -> bytes:
    """The figure as a .webp for a page that has to stay small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=110, pil_kwargs={"quality": 60})
    return buffer.getvalue()


def as_paper(figure: Figure, *, has_title: bool = False) -> None:
    """Make a figure as wide as a column of a paper, where its caption is its title.

    has_title: keep the title all the same.
    """
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    figure.set_size_inches(PAPER)
    for axes in figure.axes:
        title = " ".join(axes.get_title(loc="left").split()) if has_title else ""
        axes.set_title("\n".join(textwrap.wrap(title, PAPER_TITLE_WIDTH)), loc="left", **PLAIN)
    for text in figure.findobj(Text):
        text.set_fontsize(PAPER_FONT)
    for line in figure.findobj(Line2D):
        line.set_linewidth(0.6 * line.get_linewidth())
        line.set_markersize(0.6 * line.get_markersize())


def _draw_curve(
    axes: Axes, curve: Sequence[Point], base: Point, style: int, label: str, axis: Axis
) -> None:
    colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
    x, y = [axis.of(p) for p in curve], [p.score for p in curve]
    axes.plot([x[-1], axis.of(base)], [y[-1], base.score], color=colour, linewidth=1, linestyle=":")
    axes.errorbar(
        x,
        y,
        yerr=spread(curve),
        color=colour,
        marker=marker,
        markersize=5.5,
        markerfacecolor="white" if base.epochs else colour,
        linestyle="--" if base.epochs else "-" if style < len(COLOURS) else "-.",
        linewidth=1.7,
        elinewidth=0.8,
        capsize=2,
        label=label,
    )


def _draw_bases(axes: Axes, bases: Sequence[Point], axis: Axis) -> None:
    for base in bases:
        axes.errorbar(
            [axis.of(base)],
            [base.score],
            yerr=spread([base]),
            color=BASE_COLOUR,
            marker="*",
            markersize=13,
            markerfacecolor="white" if base.epochs else BASE_COLOUR,
            linestyle="none",
            elinewidth=0.8,
            capsize=2,
            label=curve_name(base),
            zorder=5,
        )
        axes.axhline(base.score, color=BASE_COLOUR, linewidth=0.7, linestyle="--", alpha=0.5)


WIDTH = 0.8


def bench_figure(results: Sequence[BenchResult], title: str) -> Figure:
    """A group of bars for each batch size and dtype, in it one for each method and schedule.

    A black line is the ideal speed-up.
    """
    groups = list(dict.fromkeys((r.batch_size, r.dtype) for r in results))
    several = len({r.schedule for r in results}) > 1
    variants = list(dict.fromkeys((r.method, r.schedule) for r in results))
    figure = new_figure(max(5.5, 1.2 + 1.6 * len(groups)), 4.2)
    axes = figure.add_subplot()
    bar = WIDTH / len(variants)
    for i, (method, schedule) in enumerate(variants):
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
