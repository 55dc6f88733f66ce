"""The report of a sweep: figure, CSV, JSON, Markdown, and one HTML page without other files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tpcli.config.measures import MEASURES
from tpcli.config.outputs import PARETO_FORMAT, report_paths
from tpcli.pareto import Point, Recommendation, SweepResult, frontier
from tpcli.pareto.points import FINETUNED, spoken
from tpcli.system.files import MARK, replacing, write_text
from tpcli.system.text import CONVENTION, as_code, as_markdown, visible

from .context import ReportContext
from .family_figure import family_figure
from .figure import as_paper, axis_for, figure_bytes, pareto_figure
from .tables import (
    HEADINGS,
    comparisons_table,
    csv_text,
    equal_flops_table,
    latex_table,
    markdown_table,
    points_frame,
    points_table,
    savings_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PER_IMAGE = f"{CONVENTION}, per image"


def html(
    result: SweepResult, context: ReportContext, x: str = "gflops", strip: bytes | None = None
) -> str:
    """The report as one HTML file without others."""
    picture = base64.b64encode(strip or b"").decode()
    return _render("report.html", result, context, chart=chart(result.points, x), strip=picture)


def _render(name: str, result: SweepResult, context: ReportContext, **values: Any) -> str:
    advice = result.recommendation
    cheap_first = sorted(result.frontier, key=lambda p: p.gflops)
    commands = [(p, context.command_for(p)) for p in cheap_first]
    time = result.points[0].time
    return render(
        name,
        context=context,
        convention=PER_IMAGE,
        headlines=result.headlines,
        headings=HEADINGS,
        advice=advice,
        command=context.command_for(advice.point) if advice and advice.point else "",
        commands=[(p, command) for p, command in commands if command],
        batch_size=time and time.bench_batch_size,
        points=points_table(result),
        savings=savings_table(result),
        equal_flops=equal_flops_table(result),
        comparisons=comparisons_table(result),
        measure=MEASURES[result.points[0].measure],
        reference=result.comparisons[0].reference if result.comparisons else "",
        unreadable=max((p.unreadable for p in result.points), key=len),
        **values,
    )


def render(name: str, **values: Any) -> str:
    """A template with its values, each escaped for Markdown or HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    def finalize(value: object) -> object:
        if name.endswith(".md"):
            return value if isinstance(value, Markup) else as_markdown(value)
        return visible(value) if type(value) is str else value

    environment = Environment(
        loader=PackageLoader("tpcli.report"),
        autoescape=select_autoescape(["html"]),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (as_code, markdown_table, quote):
        environment.filters[function.__name__] = lambda value, f=function: Markup(f(value))
    return environment.get_template(name).render(mark=Markup(MARK), **values)


def write_report(
    result: SweepResult,
    context: ReportContext,
    plot: Path,
    x: str = "gflops",
    strip: bytes | None = None,
    *,
    is_paper: bool = False,
) -> dict[str, Any]:
    """Write the figure and the files beside it; returns the content of the .json file.

    The report of an unfinished sweep says so in its title.

    Args:
        strip: a .webp of pooled images for the HTML page.
        is_paper: make the figure as wide as a column, and write a table in LaTeX too.
    """
    if result.left:
        known = len(result.points)
        words = f"{context.title} (unfinished: {known} of {known + result.left} points)"
        context = replace(context, title=words)
    paths = report_paths(plot, is_paper)
    figure = draw(result, context.title, x)
    if is_paper:
        as_paper(figure, has_title=bool(result.left))
    document = report_document(result, context, paths)
    # first, as it says whose the others are, also where this process is stopped here
    write_text(paths["json"], json.dumps(document, indent=2) + "\n")
    with replacing(plot) as fresh:
        fresh.write_bytes(figure_bytes(figure, plot.suffix.lower()))
    write_text(paths["csv"], csv_text(points_frame(result)))
    write_text(paths["md"], _render("report.md", result, context, plot=plot.name))
    write_text(paths["html"], html(result, context, x, strip))
    if is_paper:
        write_text(paths["tex"], latex_table(result))
    return document


def draw(result: SweepResult, title: str, x: str) -> Figure:
    """The figure for one model, or that for several."""
    if len({p.model for p in result.points}) > 1:
        return family_figure(result.points, result.headlines, title, x)
    return pareto_figure(result.points, title, x)


def report_document(
    result: SweepResult, context: ReportContext, paths: dict[str, Path]
) -> dict[str, Any]:
    """Points, frontier and headline as plain values."""
    advice, command_for = result.recommendation, context.command_for
    return {
        "format": PARETO_FORMAT,
        "convention": PER_IMAGE,
        "finished": not result.left,
        "measured": result.measured,
        "measure": result.points[0].measure,
        "points": [p.to_dict() for p in result.points],
        "others": [],  # each family has been a curve of its own since 0.3
        "frontier": [{**p.to_dict(), "command": command_for(p)} for p in result.frontier],
        "recommended": advice and _advice(advice, command_for),
        "comparisons": [c.to_dict() for c in result.comparisons],
        "headline": {h.curve: h.to_dict() for h in result.headlines},
        "by_model": [{"method": h.curve, **h.to_dict()} for h in result.by_model],
        "out": {name: str(path) for name, path in paths.items() if name != "json"},
        "made_by": context.to_dict(),
    }


def _advice(advice: Recommendation, command_for: Callable[[Point], str]) -> dict[str, Any]:
    point = advice.point
    return {
        "words": advice.words,
        "rule": advice.rule,
        "point": point and point.to_dict(),
        "command": command_for(point) if point else "",
        "difference": advice.difference if point else None,
        "difference_ci95": list(advice.ci95) if point else None,
    }


def table_rows(result: SweepResult) -> list[dict[str, str]]:
    """The table of points, by the names of its columns."""
    rows: list[dict[str, str]] = points_table(result).to_dict("records")  # type: ignore[assignment]
    return rows


WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 50
"""Margins of the plot."""
COLOURS = 8
"""Colours that the page has for curves; BASE is that of text."""
BASE = -1
STAR = "M0-8.5 2.1-2.8 8.1-2.6 3.3 1.1 5 6.9 0 3.5-5 6.9-3.3 1.1-8.1-2.6-2.1-2.8Z"
SHAPES = (
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",
    "M-4-4H4V4H-4Z",
    "M0-5.2 4.9 3.6H-4.9Z",
    "M0-5.6 5.6 0 0 5.6-5.6 0Z",
    "M0 5.2 4.9-3.6H-4.9Z",
    "M-1.6-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
)


@dataclass(frozen=True)
class Mark:
    """A point: its coordinates, its interval from `top` to `bottom`, and its tooltip."""

    x: float
    y: float
    top: float
    bottom: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """Marks with a line through them; `link` is the dotted line to the model without pooling."""

    name: str
    colour: int
    shape: str
    is_dashed: bool
    line: str
    link: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """Everything drawn, in units of a picture of WIDTH x HEIGHT."""

    curves: tuple[Curve, ...]
    frontier: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def chart(points: Sequence[Point], x: str = "gflops") -> Chart:
    """The chart of a sweep: a curve for each model and method, and one through the unpooled models.

    x: name in `AXES`.
    """
    axis = axis_for(x, points)
    x_scale = Scale(0, 1.06 * max(map(axis.of, points)), LEFT, WIDTH - RIGHT)
    low, high = min(p.score_lo for p in points), max(p.score_hi for p in points)
    room = 0.04 * max(high - low, 0.1)
    y_scale = Scale(low - room, min(high + room, 100 + room), HEIGHT - BOTTOM, TOP)

    def path(drawn: Sequence[Point]) -> str:
        return "M" + "L".join(f"{x_scale(axis.of(p))} {y_scale(p.score)}" for p in drawn)

    def curve(name: str, own: list[Point], colour: int, shape: str, base: Point | None) -> Curve:
        own = sorted(own, key=axis.of)
        nearest = max(own, key=lambda p: p.gflops)
        marks = tuple(
            Mark(
                x=x_scale(axis.of(p)),
                y=y_scale(p.score),
                top=y_scale(p.score_hi),
                bottom=y_scale(p.score_lo),
                words=told(p),
            )
            for p in own
        )
        link = "" if base is None else path([nearest, base])
        line = path(own) if len(own) > 1 else ""
        return Curve(name, colour, shape, own[0].epochs > 0, line, link, marks)

    bases = [p for p in points if p.is_base]
    models = list(dict.fromkeys(p.model for p in points))
    methods = list(dict.fromkeys(p.curve.removesuffix(FINETUNED) for p in points if not p.is_base))
    curves = []
    for model, method in dict.fromkeys((p.model, p.curve) for p in points if not p.is_base):
        own = [p for p in points if (p.model, p.curve) == (model, method)]
        base = next((b for b in bases if b.is_base_of(own[0])), None)
        rank = methods.index(method.removesuffix(FINETUNED))
        colour = (rank if len(models) == 1 else models.index(model)) % COLOURS
        name = spoken(method)
        name = name if len(models) == 1 else f"{model}, {name}"
        curves.append(curve(name, own, colour, SHAPES[rank % len(SHAPES)], base))
    for epochs in sorted({b.epochs for b in bases}):
        name = "without pooling, fine-tuned" if epochs else "without pooling"
        curves.append(curve(name, [b for b in bases if b.epochs == epochs], BASE, STAR, None))
    best = path(frontier(points)) if x == "gflops" else ""
    label = MEASURES[points[0].measure].axis
    return Chart(tuple(curves), best, x_scale.ticks(), y_scale.ticks(), axis.label, label)


@dataclass(frozen=True)
class Scale:
    """Linear map from `low`..`high` to coordinates `start`..`end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """A few round numbers: their coordinates and texts."""
        from matplotlib.ticker import MaxNLocator

        values = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [float(v) for v in values if self.low - 1e-9 <= v <= self.high + 1e-9]
        return tuple((self(v), f"{v:.10g}") for v in inside)


def told(p: Point) -> tuple[str, ...]:
    """Lines of a point's tooltip: name, cost, score."""
    what = "without pooling" if p.is_base else spoken(p.curve)
    target = "" if p.is_base else f", {p.target}"
    lines = [
        f"{p.model}, {what}{target}",
        f"{p.gflops:.4g} GFLOPs, {100 * p.gflops_ratio:.1f}% of the base",
        f"{MEASURES[p.measure].label} {p.score:.2f}% ({p.score_lo:.2f} to {p.score_hi:.2f})",
    ]
    if p.time:
        lines.append(f"{p.time.latency_ms:.1f} ms, {p.time.speedup:.2f} times as fast")
    return tuple(lines)
