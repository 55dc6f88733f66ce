"""The files beside the figure: CSV, JSON, Markdown, and one HTML page that stands alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tpcli.config.measures import MEASURES
from tpcli.config.outputs import PARETO_FORMAT, report_paths
from tpcli.pareto import Point, Recommendation, SweepResult, recommend
from tpcli.system.files import replacing, write_text
from tpcli.system.text import CONVENTION, as_code, as_markdown, visible

from .chart import chart
from .family_figure import family_figure
from .figure import as_paper, figure_bytes, pareto_figure
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

CommandOf = Callable[[Point], str]


def nothing(point: Point) -> str:
    """No command is known."""
    return ""


def markdown(
    result: SweepResult, context: ReportContext, plot_name: str, command_of: CommandOf = nothing
) -> str:
    """The report as Markdown."""
    from markupsafe import Markup

    def finalize(value: object) -> object:
        return value if isinstance(value, Markup) else as_markdown(value)

    return _render(
        "report.md",
        result,
        context,
        command_of,
        finalize,
        plot=Markup(quote(plot_name)),
        table=lambda frame: Markup(markdown_table(frame)),
        code=lambda value: Markup(as_code(value)),
    )


def html(
    result: SweepResult,
    context: ReportContext,
    x: str = "gflops",
    strip: bytes | None = None,
    command_of: CommandOf = nothing,
) -> str:
    """The report as one HTML file that needs no other."""

    def finalize(value: object) -> object:
        return visible(value) if type(value) is str else value

    return _render(
        "report.html",
        result,
        context,
        command_of,
        finalize,
        chart=chart(result.points, x),
        strip=base64.b64encode(strip or b"").decode(),
        headings=HEADINGS,
    )


def _render(
    name: str,
    result: SweepResult,
    context: ReportContext,
    command_of: CommandOf,
    finalize: Callable[[object], object],
    **values: Any,
) -> str:
    advice = recommend(result.points)
    cheap_first = sorted(result.frontier, key=lambda p: p.gflops)
    timed = next((p.more for p in result.points if "bench_batch_size" in p.more), {})
    return render(
        name,
        finalize,
        context=context,
        convention=PER_IMAGE,
        headlines=result.headlines,
        advice=advice,
        command=command_of(advice.point) if advice and advice.point else "",
        commands=[(p, command_of(p)) for p in cheap_first if command_of(p)],
        batch_size=timed.get("bench_batch_size"),
        points=points_table(result),
        savings=savings_table(result),
        equal_flops=equal_flops_table(result),
        comparisons=comparisons_table(result),
        measure=MEASURES[result.points[0].measure],
        reference=result.comparisons[0].reference if result.comparisons else "",
        unreadable=max((p.unreadable for p in result.points), key=len),
        **values,
    )


def render(name: str, finalize: Callable[[object], object], **values: Any) -> str:
    """A template filled in; `finalize` makes what is put in harmless."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("tpcli.report"),
        autoescape=select_autoescape(["html"]),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


@dataclass(frozen=True)
class ReportContext:
    """What a reader needs to know about how the points were made."""

    title: str
    data: str
    count: int
    device: str
    precision: str
    command: str
    versions: dict[str, str]
    date: str


def write_report(
    result: SweepResult,
    context: ReportContext,
    plot: Path,
    x: str = "gflops",
    strip: bytes | None = None,
    *,
    is_paper: bool = False,
    command_of: CommandOf = nothing,
) -> dict[str, Any]:
    """Write the figure and the files beside it; returns what the .json file holds.

    Args:
        strip: a .webp of pooled images for the HTML page.
        is_paper: make the figure as wide as a column, and write a table in LaTeX too.
        command_of: the command that makes a point.
    """
    paths = report_paths(plot, is_paper)
    figure = draw(result, context.title, x)
    if is_paper:
        as_paper(figure)
    document = report_document(result, context, paths, command_of)
    # first, as it says whose the others are, also where this process is stopped here
    write_text(paths["json"], json.dumps(document, indent=2) + "\n")
    with replacing(plot) as fresh:
        fresh.write_bytes(figure_bytes(figure, plot.suffix.lower()))
    write_text(paths["csv"], csv_text(points_frame(result)))
    write_text(paths["md"], markdown(result, context, plot.name, command_of))
    write_text(paths["html"], html(result, context, x, strip, command_of))
    if is_paper:
        write_text(paths["tex"], latex_table(result))
    return document


def draw(result: SweepResult, title: str, x: str) -> Figure:
    """The figure for one model, or that for several."""
    if len({p.model for p in result.points}) > 1:
        return family_figure(result.points, result.headlines, title, x)
    return pareto_figure(result.points, title, x)


def report_document(
    result: SweepResult,
    context: ReportContext,
    paths: dict[str, Path],
    command_of: CommandOf = nothing,
) -> dict[str, Any]:
    """Points, frontier and headline as plain values."""
    advice = recommend(result.points)
    return {
        "format": PARETO_FORMAT,
        "convention": PER_IMAGE,
        "measured": result.measured,
        "measure": result.points[0].measure,
        "points": [p.to_dict() for p in result.points],
        "others": [p.to_dict() for p in result.others],
        "frontier": [{**p.to_dict(), "command": command_of(p)} for p in result.frontier],
        "recommended": advice and _advice(advice, command_of),
        "comparisons": [c.to_dict() for c in result.comparisons],
        "headline": {h.method: h.to_dict() for h in result.headlines},
        "by_model": [{"method": h.method, **h.to_dict()} for h in result.by_model],
        "out": {name: str(path) for name, path in paths.items() if name != "json"},
        "made_by": asdict(context),
    }


def _advice(advice: Recommendation, command_of: CommandOf) -> dict[str, Any]:
    point = advice.point
    return {
        "words": advice.words,
        "rule": advice.rule,
        "point": point and point.to_dict(),
        "command": command_of(point) if point else "",
        "difference": advice.difference if point else None,
        "difference_ci95": list(advice.ci95) if point else None,
    }


def table_rows(result: SweepResult) -> list[dict[str, str]]:
    """The table of points, by the names of its columns."""
    rows: list[dict[str, str]] = points_table(result).to_dict("records")  # type: ignore[assignment]
    return rows
