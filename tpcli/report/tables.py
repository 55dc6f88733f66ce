"""The tables of reports: data frames of text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pandas import DataFrame

from tpcli.analysis.result import KEEP, STAGE_MEASURES, Analysis
from tpcli.config.measures import MEASURES
from tpcli.pareto import Point, SweepResult
from tpcli.pareto.compare import score_at
from tpcli.pareto.headline import Headline, Saving, kept
from tpcli.pareto.points import CSV_COLUMNS, PointTime, curve_name, spoken
from tpcli.stats import signed
from tpcli.system.files import MARK
from tpcli.system.text import as_cell, as_markdown, visible

HEADINGS = {
    "gflops": "GFLOPs",
    "ratio": "of base",
    "interval": "95% interval",
    "speed": "images/s",
    "latency_ms": "ms",
    "speedup": "speed-up",
    "tokens": "patch tokens after each block",
    **{m.name: f"{m.label} %" for m in MEASURES.values()},
    **{name: heading for m in MEASURES.values() for name, heading in m.more},
}
"""Headings of columns, where they are not their names."""


def csv_text(frame: DataFrame) -> str:
    """A data frame as CSV, in which no name is a formula."""
    text: str = frame.map(lambda v: as_cell(v) if isinstance(v, str) else v).to_csv(index=False)
    return text


def markdown_table(frame: DataFrame) -> str:
    """A data frame of text as a table in Markdown."""
    heads = [HEADINGS.get(column, column) for column in frame.columns]
    lines = [heads, ["---"] * len(heads), *frame.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(as_markdown, line))} |" for line in lines)


def _frame(rows: list[dict[str, Any]], columns: list[str] | None = None) -> DataFrame:
    frame: DataFrame = DataFrame(rows, columns=columns)
    return frame


def points_frame(result: SweepResult) -> DataFrame:
    """One row per point, with the columns that scripts rely on, as far as they are measured."""
    rows = [p.to_dict() for p in result.points]
    more = MEASURES[result.points[0].measure].more
    names = dict.fromkeys(
        [*CSV_COLUMNS, *(name for name, _ in more), *(f.name for f in fields(PointTime))]
    )
    return _frame(rows, [name for name in names if any(name in row for row in rows)])


def points_table(result: SweepResult) -> DataFrame:
    """All points, from dear to cheap within each model and method; frontier: "yes" or nothing."""
    bases = {p.model: p for p in result.points if p.is_base and not p.epochs}
    order = {(p.model, p.curve): i for i, p in enumerate(result.points)}
    ordered = sorted(result.points, key=lambda p: (order[p.model, p.curve], -p.gflops))
    return _frame([_row(p, bases[p.model]) for p in ordered])


def _row(p: Point, base: Point) -> dict[str, str]:
    return {
        "model": p.model,
        "method": curve_name(p),
        "budget": "" if p.is_base else p.target,
        "gflops": f"{p.gflops:.3f}" if p.gflops >= 0.1 else f"{p.gflops:.4f}",
        "ratio": f"{100 * p.gflops_ratio:.1f}%",
        p.measure: f"{p.score:.2f}",
        "interval": f"{p.score_lo:.2f} to {p.score_hi:.2f}",
        "difference": "" if p is base else signed(p.score - base.score),
        **{name: _more(p, name) for name, _ in MEASURES[p.measure].more},
        "speed": f"{p.images_per_second:.0f}",
        **_timing(p),
        "tokens": " ".join(map(str, p.tokens)),
        "frontier": "yes" if p.on_frontier else "",
    }


def _timing(p: Point) -> dict[str, str]:
    """Where it was timed: milliseconds of a batch, and the speed-up."""
    if p.time is None:
        return {}
    return {"latency_ms": f"{p.time.latency_ms:.1f}", "speedup": f"{p.time.speedup:.2f}x"}


def _more(p: Point, name: str) -> str:
    return "" if name not in p.more else f"{p.more[name]:.{4 if name == 'kl' else 2}f}"


def savings_table(result: SweepResult) -> DataFrame:
    """FLOPs saved by each method at the scores of the headline, and what it gains; by model."""
    return _frame(
        [
            ({"model": h.model} if result.by_model else {})
            | {"method": h.label}
            | {
                _step(h, below): _saved(saving)
                for below, saving in h.same_accuracy_flops_saving.items()
            }
            | ({"gained at equal GFLOPs": _gained(h)} if result.by_model else {})
            for entry in result.by_model or result.headlines
            for h in entry.both
        ]
    )


def _step(h: Headline, below: str) -> str:
    """What a column of savings is headed by."""
    measure = MEASURES[h.measure]
    if measure.is_of_unpooled:
        return f"at {kept(below)} {measure.noun}"
    if float(below) == 0:
        return f"at the same {measure.noun}"
    return f"at {float(below):g} point{'s' if float(below) != 1 else ''} less"


def _gained(h: Headline) -> str:
    gain = h.same_flops_accuracy_gain
    if gain is None or h.gain_at_gflops is None:
        return "beyond the other models"
    low, high = gain.ci95
    return f"{signed(gain.value)} ({signed(low)} to {signed(high)}) at {h.gain_at_gflops:.3g}"


def _saved(saving: Saving | None) -> str:
    return "not reached" if saving is None else saving.words


def equal_flops_table(result: SweepResult) -> DataFrame:
    """The score of each method at the same share of FLOPs, interpolated between its points."""
    budgets = sorted({p.budget for p in result.points if p.budget is not None}, reverse=True)
    rows = []
    for model in dict.fromkeys(p.model for p in result.points):
        for budget in budgets:
            row = {"model": model, "of base FLOPs": f"{100 * budget:g}%"}
            for h in result.headlines:
                value = score_at(result.points, h.curve, model, budget)
                row[spoken(h.curve)] = "" if value is None else f"{value:.2f}"
            rows.append(row)
    return _frame(rows)


def comparisons_table(result: SweepResult) -> DataFrame:
    """Other methods against the first: difference, interval, and whether chance explains it."""
    return _frame(
        [
            {
                "model": c.model,
                "budget": c.schedule,
                "method": spoken(c.method),
                "difference": signed(c.difference),
                "interval": f"{signed(c.ci95[0])} to {signed(c.ci95[1])}",
                "p": f"{c.p_holm:.3f}" if c.p_holm >= 0.001 else "< 0.001",
            }
            for c in result.comparisons
        ]
    )


def latex_table(result: SweepResult) -> str:
    """The points as a table in LaTeX, with the rules of booktabs; names are plain characters."""
    measure = MEASURES[result.points[0].measure]
    table = points_table(result)
    names = ["model"] * (table["model"].nunique() > 1) + ["method", "budget", "gflops", "ratio"]
    names += [measure.name, "interval", *(n for n in ("latency_ms", "speedup") if n in table)]
    shown: DataFrame = table[names].rename(columns=HEADINGS).map(visible)
    words = sum(name in ("model", "method", "budget") for name in names)
    text: str = shown.to_latex(
        index=False, escape=True, column_format="l" * words + "r" * (len(names) - words)
    )
    return f"% {MARK}: \\usepackage{{booktabs}}\n{text}"


def analysis_frame(found: Analysis) -> DataFrame:
    """A row for each place, and what each method keeps of the tokens where it was measured."""
    rows = []
    for stage in found.blocks:
        row = {name: getattr(stage, name) for name in ("index", "stage", *STAGE_MEASURES)}
        for method in found.methods:
            for keep in KEEP:
                here = stage.stage == ("attention" if found.has("attention") else "mlp")
                value = found.kept(method, keep)[stage.index] if here else None
                row[f"kept_{method}_{keep:g}"] = value
        rows.append(row)
    return _frame(rows)


def measures_table(found: Analysis) -> DataFrame:
    """The measures as text."""
    rows = [
        {
            "block": str(s.index),
            "stage": s.stage,
            "highest frequency": _number(s.relative_log_amplitude, 2),
            "HC/DC": _number(s.hf_lf_ratio, 3),
            "residual": _number(s.residual, 3),
            "effective rank": _number(s.effective_rank, 1),
            "mean cosine": _number(s.mean_cosine, 3),
            "nearest": _number(s.nearest_distance, 3),
            "ranks": _number(s.rank_consistency, 3),
        }
        for s in found.blocks
        if s.stage != "input" or s.index == 0
    ]
    return _frame(rows)


def kept_table(found: Analysis) -> DataFrame:
    """What methods keep, as text, in percent."""
    rows = [
        {
            "block": str(index),
            **{
                f"{method}, {keep:g}": f"{100 * found.kept(method, keep)[index]:.2f}"
                for method in found.methods
                for keep in KEEP
            },
        }
        for index in range(found.depth)
    ]
    return _frame(rows)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
