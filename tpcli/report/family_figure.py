"""The figure of several models: the curve that their sizes make, and what pooling puts above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tpcli.config.measures import MEASURES
from tpcli.pareto import Headline, Point, frontier
from tpcli.pareto.points import FINETUNED, spoken
from tpcli.system.text import visible

from .figure import (
    BASE_COLOUR,
    COLOURS,
    MARKERS,
    Axis,
    axis_for,
    new_figure,
    spread,
    tidy,
    write_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARROW = "#B00020"
DEPTH = 2.0
"""How far the axis goes below the unpooled models, in multiples of the range that they span."""


def family_figure(
    points: Sequence[Point], headlines: Sequence[Headline], title: str, x: str = "gflops"
) -> Figure:
    """Draw models of several sizes, each under pooling, and the headline as two arrows.

    The black line runs through the models without pooling. Each model has one hue and each method
    one marker; the first method is drawn strongest. The grey band is the frontier of all points.
    What was fine-tuned has open markers and dashed lines. Points far below all models without
    pooling are off the picture, which says how many they are.

    Args:
        headlines: of the same points; the arrows are those of the last one of the first method,
            which is the fine-tuned one where there is one.
        x: name in `AXES`; arrows are drawn over GFLOPs only.
    """
    figure = new_figure(7.6, 5.2)
    axes = figure.add_subplot()
    axis = axis_for(x, points)
    bases = [p for p in points if p.is_base]
    methods = list(dict.fromkeys(p.curve.removesuffix(FINETUNED) for p in points if not p.is_base))
    _draw_frontier(axes, points, axis)
    for i, model in enumerate(dict.fromkeys(p.model for p in points)):
        for curve in dict.fromkeys(p.curve for p in points if not p.is_base):
            own = [p for p in points if p.model == model and p.curve == curve]
            base = next((b for b in bases if own and b.is_base_of(own[0])), None)
            if base is not None:
                rank = methods.index(curve.removesuffix(FINETUNED))
                _draw_curve(axes, own, base, COLOURS[i % len(COLOURS)], rank, axis)
    _draw_baseline(axes, bases, axis)
    told = [h for h in headlines if h.curve.removesuffix(FINETUNED) in methods[:1]]
    if x == "gflops" and told:
        _draw_arrows(axes, points, told[-1])
    axes.set_xlabel(axis.label)
    axes.set_ylabel(MEASURES[points[0].measure].axis)
    write_title(axes, title)
    axes.set_xlim(left=0, right=1.06 * max(axis.of(p) for p in points))
    hidden = _leave_out_the_depths(axes, points, bases)
    tidy(axes)
    _draw_legend(axes, points, methods, hidden, x == "throughput")
    return figure


def _draw_curve(
    axes: Axes, own: Sequence[Point], base: Point, colour: str, rank: int, axis: Axis
) -> None:
    curve = sorted([*own, base], key=lambda p: p.gflops)
    leads = rank == 0
    marker = MARKERS[rank % len(MARKERS)]
    axes.plot(
        [axis.of(p) for p in curve],
        [p.score for p in curve],
        color=colour,
        linestyle="--" if base.epochs else "-",
        linewidth=2.0 if leads else 0.9,
        alpha=1.0 if leads else 0.55,
        zorder=3 if leads else 2,
    )
    axes.errorbar(
        [axis.of(p) for p in own],
        [p.score for p in own],
        yerr=spread(own) if leads else None,
        color=colour,
        marker=marker,
        markersize=5.5 if leads else 4.0,
        markerfacecolor="white" if base.epochs else colour,
        linestyle="none",
        elinewidth=0.7,
        alpha=1.0 if leads else 0.55,
        zorder=4 if leads else 2,
    )


def _draw_baseline(axes: Axes, bases: Sequence[Point], axis: Axis) -> None:
    for epochs in sorted({b.epochs for b in bases}):
        line = sorted((b for b in bases if b.epochs == epochs), key=axis.of)
        axes.errorbar(
            [axis.of(b) for b in line],
            [b.score for b in line],
            yerr=spread(line),
            color=BASE_COLOUR,
            marker="*",
            markersize=14,
            markerfacecolor="white" if epochs else BASE_COLOUR,
            linestyle="--" if epochs else "-",
            linewidth=1.8,
            elinewidth=0.7,
            zorder=5,
        )


def _draw_frontier(axes: Axes, points: Sequence[Point], axis: Axis) -> None:
    best = frontier(points)
    axes.plot(
        [axis.of(p) for p in best],
        [p.score for p in best],
        color="#777777",
        linewidth=9,
        alpha=0.22,
        solid_capstyle="round",
        zorder=1,
    )


def _leave_out_the_depths(axes: Axes, points: Sequence[Point], bases: Sequence[Point]) -> str:
    """Let the axis begin where what is compared has room; says in words what is off it."""
    low, high = min(b.score_lo for b in bases), max(b.score_hi for b in bases)
    floor = low - DEPTH * (high - low)
    below = sum(p.score < floor for p in points)
    if not below or high == low:
        return ""
    axes.set_ylim(bottom=floor)
    return f"{below} point{'s' if below > 1 else ''} below {floor:.0f}% not shown"


def _draw_arrows(axes: Axes, points: Sequence[Point], told: Headline) -> None:
    """Left: less computation at equal score. Up: a higher score for equal computation."""
    epochs = next(p.epochs for p in points if p.curve == told.curve)
    bases = sorted((p for p in points if p.is_base and p.epochs == epochs), key=lambda p: p.gflops)
    own = next(b for b in bases if b.model == told.model)
    style: dict[str, Any] = {"arrowstyle": "-|>", "color": ARROW, "linewidth": 1.8, "shrinkA": 0}
    style |= {"shrinkB": 0, "mutation_scale": 14}
    words: dict[str, Any] = {"color": ARROW, "fontsize": 9.5, "fontweight": "bold", "zorder": 7}
    words |= {"bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}}
    if told.told is not None:
        below, saving = told.told
        level = own.score - float(below)
        end = own.gflops * (1 - saving.value)
        axes.annotate(
            "", (end, level), (own.gflops, level), arrowprops=style, zorder=6, annotation_clip=False
        )
        label = f"-{100 * saving.value:.0f}% computation".replace("-", "\N{MINUS SIGN}")
        if float(below):
            label += f" for {float(below):g} point"
        axes.annotate(
            label, ((end + own.gflops) / 2, level), xytext=(0, -5), textcoords="offset points",
            ha="center", va="top", **words,
        )  # fmt: skip
    gain, where = told.same_flops_accuracy_gain, told.gain_at_gflops
    if gain is not None and where is not None and gain.value > 0:
        x, y = [b.gflops for b in bases], [b.score for b in bases]
        start = float(np.interp(where, x, y))
        axes.annotate("", (where, start + gain.value), (where, start), arrowprops=style, zorder=6)
        axes.annotate(
            f"+{gain.value:.1f} points", (where, start + gain.value), xytext=(0, 9),
            textcoords="offset points", ha="center", va="bottom", **words,
        )  # fmt: skip


def _draw_legend(
    axes: Axes, points: Sequence[Point], methods: Sequence[str], hidden: str, is_left: bool
) -> None:
    from matplotlib.lines import Line2D

    models = dict.fromkeys(p.model for p in points)
    epochs = max(p.epochs for p in points)
    entries = [
        Line2D([], [], color=BASE_COLOUR, marker="*", markersize=11, label="without pooling"),
        *(
            Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=2, label=visible(model))
            for i, model in enumerate(models)
        ),
        *(
            Line2D([], [], color="#777777", marker=MARKERS[i % len(MARKERS)], linestyle="none",
                   markersize=5.5 if i == 0 else 4, label=spoken(method))
            for i, method in enumerate(methods)
        ),
        Line2D([], [], color="#777777", linewidth=7, alpha=0.3, label="frontier"),
    ]  # fmt: skip
    if epochs:
        words = f"fine-tuned ({epochs} epoch{'s' if epochs > 1 else ''})"
        entries.append(
            Line2D([], [], color="#777777", linestyle="--", marker="o", markersize=5.5,
                   markerfacecolor="white", label=words)
        )  # fmt: skip
    if hidden:
        entries.append(Line2D([], [], linestyle="none", label=hidden))
    where: Literal["lower left", "lower right"] = "lower left" if is_left else "lower right"
    legend = axes.legend(handles=entries, loc=where, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
