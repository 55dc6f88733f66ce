"""One page on the tokens of a model, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tpcli.analysis.result import Analysis, verdict
from tpcli.config.outputs import ANALYSIS_FORMAT, report_paths
from tpcli.system.files import replacing, write_text
from tpcli.system.text import visible

from .context import ReportContext
from .figure import BASE_COLOUR, COLOURS, PLAIN, embedded, figure_bytes, new_figure, tidy
from .pareto import render
from .tables import analysis_frame, csv_text, kept_table, measures_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATTENTION, MLP = COLOURS[0], COLOURS[1]
HALVES = {"attention": 0.5, "mlp": 1.0}
"""Where a stage lies between the input of its block and the next."""


def analysis_figure(found: Analysis, title: str) -> Figure:
    """Six small pictures: frequencies, smoothing, rank, likeness, what pooling keeps."""
    figure = new_figure(11.4, 7.6)
    grid = figure.subplots(2, 3)
    if found.no_spectrum:
        for axes in grid[0, :2]:
            axes.text(0.5, 0.5, f"{found.no_spectrum}.", ha="center", va="center", wrap=True)
            axes.set_axis_off()
    else:
        _steps(grid[0, 0], found, "relative_log_amplitude")
        _name(grid[0, 0], "Does attention smooth?", "highest frequency, log amplitude")
        _spectra(grid[0, 1], found)
    _steps(grid[0, 2], found, "hf_lf_ratio")
    _name(grid[0, 2], "How far are tokens from their mean?", "||HC|| / ||DC||")
    _steps(grid[1, 0], found, "effective_rank")
    _name(grid[1, 0], "How many directions do they span?", "effective rank")
    grid[1, 0].set_ylim(bottom=0)
    _likeness(grid[1, 1], found)
    _kept(grid[1, 2], found)
    for axes in (grid[0, 2], *([] if found.no_spectrum else [grid[0, 0]])):
        _legend(axes, found)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 1, 0.87))
    figure.text(0.01, 0.985, visible(title), va="top", fontsize=12, weight="bold", **PLAIN)
    words = "\n".join(visible(sentence) for sentence in verdict(found))
    figure.text(0.01, 0.95, words, va="top", fontsize=9, linespacing=1.5, **PLAIN)
    return figure


def _name(axes: Axes, title: str, label: str, x: str = "block") -> None:
    axes.set_title(title, loc="left", fontsize=10, weight="bold")
    axes.set_ylabel(label, fontsize=9)
    axes.set_xlabel(x, fontsize=9)
    axes.tick_params(labelsize=8)
    tidy(axes)


def _steps(axes: Axes, found: Analysis, measure: str) -> None:
    """A measure through the depth; each half of a block in the colour of what it does."""
    last = (0.0, getattr(found.at(0, "input"), measure))
    axes.plot(*last, "o", color=BASE_COLOUR, markersize=3)
    for stage in found.blocks:
        if stage.stage == "input":
            continue
        point = (stage.index + HALVES[stage.stage], getattr(stage, measure))
        if not found.has("attention"):
            colour = BASE_COLOUR
        else:
            colour = ATTENTION if stage.stage == "attention" else MLP
        axes.plot(*zip(last, point, strict=True), color=colour, linewidth=1.8)
        axes.plot(*point, "o", color=colour, markersize=3)
        last = point
    _blocks(axes, found, 0.5)


def _blocks(axes: Axes, found: Analysis, middle: float) -> None:
    """Numbers of blocks, at the middle of each."""
    step = max(1, found.depth // 12)
    shown = range(0, found.depth, step)
    axes.set_xticks([i + middle for i in shown], [str(i) for i in shown])


def _legend(axes: Axes, found: Analysis) -> None:
    from matplotlib.lines import Line2D

    if found.has("attention"):
        lines = [Line2D([], [], color=c, linewidth=1.8) for c in (ATTENTION, MLP)]
        axes.legend(lines, ["attention", "MLP"], frameon=False, fontsize=9, loc="best")


def _spectra(axes: Axes, found: Analysis) -> None:
    from matplotlib import colormaps

    for index in range(found.depth):
        line = found.at(index, "mlp").spectrum
        colour = colormaps["viridis"](0.9 * index / max(1, found.depth - 1))
        label = f"block {index}" if index in (0, found.depth - 1) else None
        axes.plot(np.linspace(0, 1, len(line)), line, color=colour, linewidth=1.4, label=label)
    _name(axes, "Which frequencies are left?", "log amplitude, less that at 0", "frequency")
    axes.set_xticks([0, 0.5, 1], ["0", "half", "highest"])
    axes.legend(frameon=False, fontsize=9)


def _likeness(axes: Axes, found: Analysis) -> None:
    stages = [found.at(i, "mlp") for i in range(found.depth)]
    names = {"mean_cosine": "mean cosine", "nearest_distance": "distance to the nearest / norm"}
    for (name, label), style, colour in zip(names.items(), "-:", COLOURS[2:], strict=False):
        values = [getattr(stage, name) for stage in stages]
        axes.plot(values, style, color=colour, marker="o", markersize=3, label=label)
    _name(axes, "How alike are they?", "after the block")
    _blocks(axes, found, 0)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.legend(frameon=False, fontsize=9)


def _kept(axes: Axes, found: Analysis) -> None:
    from matplotlib.lines import Line2D

    styles: dict[float, Any] = {0.5: "-", 0.25: ":"}
    entries = []
    for i, method in enumerate(found.methods):
        colour = COLOURS[i % len(COLOURS)]
        for keep, style in styles.items():
            values = [100 * share for share in found.kept(method, keep)]
            axes.plot(values, style, color=colour, marker="o", markersize=3)
        entries.append((Line2D([], [], color=colour), visible(method)))
    entries += [
        (Line2D([], [], color=BASE_COLOUR, linestyle=styles[0.5]), "half of the tokens"),
        (Line2D([], [], color=BASE_COLOUR, linestyle=styles[0.25]), "a quarter"),
    ]
    _name(axes, "Where does pooling cost least?", "variance kept (%)")
    _blocks(axes, found, 0)
    lines, labels = zip(*entries, strict=True)
    low = axes.get_ylim()[0]
    axes.set_ylim(low - 0.45 * (100 - low), 101)  # room for the legend
    axes.legend(lines, labels, frameon=False, fontsize=8, ncols=2, loc="lower center")


def write_analysis(
    found: Analysis, context: ReportContext, name: str, plot: Path
) -> dict[str, Any]:
    """Write the figure and the four files beside it; returns what the .json file holds."""
    paths = report_paths(plot)
    figure = analysis_figure(found, context.title)
    document = {
        "format": ANALYSIS_FORMAT,
        "model": name,
        "data": context.data,
        **found.to_dict(),
        "verdict": list(verdict(found)),
        "out": {kind: str(path) for kind, path in paths.items() if kind != "json"},
        "made_by": context.to_dict(),
    }
    write_text(paths["json"], json.dumps(document, indent=2) + "\n")
    with replacing(plot) as fresh:
        fresh.write_bytes(figure_bytes(figure, plot.suffix.lower()))
    write_text(paths["csv"], csv_text(analysis_frame(found)))
    values = {
        "context": context,
        "found": found,
        "verdict": verdict(found),
        "tables": [measures_table(found), kept_table(found)],
    }
    write_text(paths["md"], render("analysis.md", plot=plot.name, **values))
    write_text(paths["html"], render("analysis.html", plot=embedded(figure), **values))
    return document
