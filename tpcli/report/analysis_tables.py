"""The tables of an analysis."""

from __future__ import annotations

from typing import Any

from pandas import DataFrame

from tpcli.analysis.result import KEEP, MEASURES, Analysis


def analysis_frame(found: Analysis) -> DataFrame:
    """A row for each place, and what each method keeps of the tokens where it was measured."""
    rows: list[dict[str, Any]] = []
    for stage in found.blocks:
        row = {name: getattr(stage, name) for name in ("index", "stage", *MEASURES)}
        for method in found.methods:
            for keep in KEEP:
                here = stage.stage == ("attention" if found.has("attention") else "mlp")
                value = found.kept(method, keep)[stage.index] if here else None
                row[f"kept_{method}_{keep:g}"] = value
        rows.append(row)
    frame: DataFrame = DataFrame(rows)
    return frame


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
    frame: DataFrame = DataFrame(rows)
    return frame


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
    frame: DataFrame = DataFrame(rows)
    return frame


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
