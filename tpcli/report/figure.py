"""The Pareto figure: top-1 against GFLOPs, one curve per method."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpcli.pareto import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

# Okabe and Ito's palette, told apart by people with any colour vision; markers differ as well
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
BASE_COLOUR = "#222222"


def pareto_figure(points: Sequence[Point], title: str) -> Figure:
    """Draw all points: error bars are 95% intervals, stars are the models without pooling."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bases = [p for p in points if p.is_base]
    methods = list(dict.fromkeys(p.method for p in points if not p.is_base))
    for i, method in enumerate(methods):
        colour = COLOURS[i % len(COLOURS)]
        for j, base in enumerate(bases):
            own = [p for p in points if p.method == method and p.model == base.model]
            curve = sorted(own, key=lambda p: p.gflops)
            _draw_curve(axes, curve, base, colour, MARKERS[i % len(MARKERS)], method, j == 0)
    _draw_bases(axes, bases)
    axes.set_xlabel("GFLOPs (multiply-adds) per image")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(left=0, right=1.06 * max(p.gflops for p in points))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def figure_bytes(figure: Figure, suffix: str) -> bytes:
    """The figure as a file of that suffix (.png, .svg or .pdf), without a date in it."""
    buffer = io.BytesIO()
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
    figure.savefig(buffer, format=suffix[1:], dpi=160, metadata=metadata)
    return buffer.getvalue()


def _draw_curve(
    axes: Axes,
    curve: Sequence[Point],
    base: Point,
    colour: str,
    marker: str,
    method: str,
    labelled: bool,
) -> None:
    if not curve:
        return
    x = [p.gflops for p in curve]
    y = [p.top1 for p in curve]
    spread = [[p.top1 - p.top1_lo for p in curve], [p.top1_hi - p.top1 for p in curve]]
    axes.plot([x[-1], base.gflops], [y[-1], base.top1], color=colour, linewidth=1, linestyle=":")
    axes.errorbar(
        x,
        y,
        yerr=spread,
        color=colour,
        marker=marker,
        markersize=5.5,
        linewidth=1.7,
        elinewidth=0.8,
        capsize=2,
        label=method if labelled else None,
    )


def _draw_bases(axes: Axes, bases: Sequence[Point]) -> None:
    for i, base in enumerate(bases):
        spread = [[base.top1 - base.top1_lo], [base.top1_hi - base.top1]]
        axes.errorbar(
            [base.gflops],
            [base.top1],
            yerr=spread,
            color=BASE_COLOUR,
            marker="*",
            markersize=13,
            linestyle="none",
            elinewidth=0.8,
            capsize=2,
            label="without pooling" if i == 0 else None,
            zorder=5,
        )
        axes.axhline(base.top1, color=BASE_COLOUR, linewidth=0.7, linestyle="--", alpha=0.5)
        if len(bases) > 1:
            axes.annotate(
                base.model, (base.gflops, base.top1), xytext=(-8, 8), fontsize=8,
                textcoords="offset points", ha="right",
            )  # fmt: skip
