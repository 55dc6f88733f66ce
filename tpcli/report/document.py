"""The files beside the figure: CSV, JSON, Markdown, and one HTML page that stands alone."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpcli.errors import UserError
from tpcli.files import check_output, read_json, replacing, write_text
from tpcli.pareto import Point, SweepResult
from tpcli.pareto.compare import top1_at
from tpcli.pareto.points import CSV_COLUMNS, FINETUNED

from .figure import figure_bytes, pareto_figure

FORMAT = "tpcli-pareto/1"
CONVENTION = "1 multiply-add = 1 FLOP, per image"


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


def report_paths(plot: Path) -> dict[str, Path]:
    """Where a report's files go, beside the figure."""
    suffixes = ("csv", "json", "md", "html")
    return {"plot": plot, **{s: plot.with_suffix(f".{s}") for s in suffixes}}


def check_report(plot: Path) -> None:
    """Fail now if a report could not be written later.

    Raises:
        UserError: its folder is not writable, or a file that is no report's is in the place of one
            beside the figure.
    """
    paths = report_paths(plot)
    for path in paths.values():
        check_output(path)
    beside = [path for name, path in paths.items() if name != "plot" and path.exists()]
    if beside and not _is_report(paths["json"]):
        raise UserError(
            f"{beside[0]} exists and belongs to no report; choose another --out, since a report's "
            "files go beside its figure."
        )


def _is_report(path: Path) -> bool:
    try:
        document = read_json(path)
    except UserError:
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def write_report(
    result: SweepResult, context: ReportContext, plot: Path, x: str = "gflops"
) -> dict[str, Any]:
    """Write the figure and the four files beside it; returns what the .json file holds."""
    paths = report_paths(plot)
    figure = pareto_figure(result.points, context.title, x)
    document = report_document(result, context, paths)
    with replacing(plot) as fresh:
        fresh.write_bytes(figure_bytes(figure, plot.suffix.lower()))
    write_text(paths["csv"], points_csv(result))
    write_text(paths["md"], markdown(result, context, plot.name))
    write_text(paths["html"], html(result, context, figure_bytes(figure, ".png")))
    write_text(paths["json"], json.dumps(document, indent=2) + "\n")
    return document


def report_document(
    result: SweepResult, context: ReportContext, paths: dict[str, Path]
) -> dict[str, Any]:
    """Points, frontier and headline as plain values."""
    return {
        "format": FORMAT,
        "convention": CONVENTION,
        "measured": result.measured,
        "points": [p.to_dict() for p in result.points],
        "frontier": [p.to_dict() for p in result.frontier],
        "comparisons": [c.to_dict() for c in result.comparisons],
        "headline": {h.method: h.to_dict() for h in result.headlines},
        "out": {name: str(path) for name, path in paths.items() if name != "json"},
        "made_by": asdict(context),
    }


def points_csv(result: SweepResult) -> str:
    """One row per point, with the columns that scripts rely on."""
    import pandas as pd

    rows = [{column: getattr(p, column) for column in CSV_COLUMNS} for p in result.points]
    text: str = pd.DataFrame(rows, columns=list(CSV_COLUMNS)).to_csv(index=False)
    return text


def table_rows(result: SweepResult) -> list[dict[str, str]]:
    """The table of a report: from dear to cheap within each model and method."""
    bases = {p.model: p for p in result.points if p.is_base and not p.epochs}
    order = {(p.model, p.method): i for i, p in enumerate(result.points)}
    rows = []
    for p in sorted(result.points, key=lambda p: (order[p.model, p.method], -p.gflops)):
        difference = p.top1 - bases[p.model].top1
        rows.append(
            {
                "model": p.model,
                "method": _curve(p),
                "budget": _budget(p),
                "gflops": f"{p.gflops:.3f}" if p.gflops >= 0.1 else f"{p.gflops:.4f}",
                "ratio": f"{100 * p.gflops_ratio:.1f}%",
                "top1": f"{p.top1:.2f}",
                "interval": f"{p.top1_lo:.2f} to {p.top1_hi:.2f}",
                "difference": "" if p is bases[p.model] else f"{difference:+.2f}",
                "top5": f"{p.top5:.2f}",
                "speed": f"{p.images_per_second:.0f}",
                "tokens": " ".join(map(str, p.tokens)),
                "frontier": "yes" if p.on_frontier else "",
            }
        )
    return rows


def markdown(result: SweepResult, context: ReportContext, plot_name: str) -> str:
    """The report as Markdown."""
    return _render(
        "report.md",
        rows=table_rows(result),
        headlines=result.headlines,
        context=context,
        plot=plot_name,
        convention=CONVENTION,
        unreadable=_unreadable(result),
        comparisons=comparison_rows(result),
        equal_flops=equal_flops_rows(result),
    )


def html(result: SweepResult, context: ReportContext, plot_png: bytes) -> str:
    """The report as one HTML file that needs no other."""
    return _render(
        "report.html",
        rows=table_rows(result),
        headlines=result.headlines,
        context=context,
        plot=base64.b64encode(plot_png).decode(),
        convention=CONVENTION,
        unreadable=_unreadable(result),
        comparisons=comparison_rows(result),
        equal_flops=equal_flops_rows(result),
        savings=_savings(result),
    )


def _savings(result: SweepResult) -> list[dict[str, str]]:
    rows = []
    for entry in result.headlines:
        row = {"method": entry.method}
        for below, saving in entry.same_accuracy_flops_saving.items():
            row[below] = "not reached"
            if saving is not None:
                low, high = saving.ci95
                row[below] = f"{100 * saving.value:.0f}% ({100 * low:.0f} to {100 * high:.0f})"
        rows.append(row)
    return rows


def equal_flops_rows(result: SweepResult) -> list[dict[str, Any]]:
    """Top-1 of each method at the same share of FLOPs, interpolated between its points."""
    methods = [h.method for h in result.headlines]
    budgets = sorted({p.budget for p in result.points if p.budget is not None}, reverse=True)
    rows = []
    for model in dict.fromkeys(p.model for p in result.points):
        for budget in budgets:
            values = [top1_at(result.points, method, model, budget) for method in methods]
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            rows.append({"model": model, "budget": f"{100 * budget:g}%", "cells": cells})
    return rows


def comparison_rows(result: SweepResult) -> list[dict[str, str]]:
    """Other methods against the first: difference, interval, and whether chance explains it."""
    return [
        {
            "model": c.model,
            "budget": c.schedule,
            "method": c.method,
            "reference": c.reference,
            "difference": f"{c.difference:+.2f}",
            "interval": f"{c.ci95[0]:+.2f} to {c.ci95[1]:+.2f}",
            "p": f"{c.p_value:.3f}" if c.p_value >= 0.001 else "< 0.001",
        }
        for c in result.comparisons
    ]


def _unreadable(result: SweepResult) -> tuple[str, ...]:
    return max((p.unreadable for p in result.points), key=len)


def _curve(p: Point) -> str:
    method = "without pooling" if p.is_base else p.method.removesuffix(FINETUNED)
    return f"{method}, fine-tuned" if p.epochs else method


def _budget(p: Point) -> str:
    if p.is_base:
        return ""
    return p.asked


def _render(name: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("tpcli.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)
