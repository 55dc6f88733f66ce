"""The pages of a report: Markdown, and one HTML page that stands alone."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tpcli.measures import MEASURES
from tpcli.pareto import Point, SweepResult, recommend
from tpcli.text import CONVENTION, as_code, as_markdown, visible

from .chart import chart
from .tables import (
    HEADINGS,
    comparisons_table,
    equal_flops_table,
    markdown_table,
    points_table,
    savings_table,
)

if TYPE_CHECKING:
    from .document import ReportContext

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
