"""What each command writes, and how that is told from other people's files; no torch.

A command replaces nothing but outputs of its own kind (`system.files.check_output`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tpcli.system.files import Kind, check_output, has_format, holds_only, is_marked, json_object

SCHEDULE_FORMAT = "tpcli-schedule/1"
FINETUNE_FORMAT = "tpcli-finetune/1"
PARETO_FORMAT = "tpcli-pareto/1"
ANALYSIS_FORMAT = "tpcli-analysis/1"

MODEL_FILES = ("config.json", "model.safetensors")
OPTIMIZED_DOCUMENT, OPTIMIZED_PAGE = "optimize.json", "report.html"
BENCH_COLUMNS = ("model", "method", "schedule", "device", "dtype")
"""The first columns of the table that `bench` writes."""
REPORT_COLUMNS = {
    PARETO_FORMAT: ("model", "method", "schedule", "budget", "gflops"),
    ANALYSIS_FORMAT: ("index", "stage", "relative_log_amplitude"),
}
"""The first columns of a report's table."""


def _has_keys(*keys: str) -> Callable[[Path], bool]:
    """A test whether a file is a JSON object with these keys."""
    return lambda path: json_object(path).keys() >= set(keys)


def _has_columns(path: Path, columns: Sequence[str]) -> bool:
    """Whether a CSV file begins with these columns."""
    with path.open(encoding="utf-8") as file:
        return file.readline().startswith(",".join(columns))


FIGURE_KIND = Kind("a figure that tpcli drew", is_marked)
PROGRAM_KIND = Kind("a program that tpcli exported", is_marked)
SCHEDULE_KIND = Kind("a schedule file", has_format(SCHEDULE_FORMAT))
BENCH_TABLE_KIND = Kind(
    "a table that tpcli bench wrote", partial(_has_columns, columns=BENCH_COLUMNS)
)
POOLED_MODEL_KIND = Kind(
    "a pooled model that tpcli saved",
    holds_only(MODEL_FILES, "config.json", _has_keys("architecture", "token_pooling")),
)
OPTIMIZED_MODEL_KIND = Kind(
    "a model that tpcli optimize saved",
    holds_only(
        (*MODEL_FILES, OPTIMIZED_DOCUMENT, OPTIMIZED_PAGE),
        OPTIMIZED_DOCUMENT,
        _has_keys("verdict", "made_by"),
    ),
)


def report_paths(plot: Path, is_paper: bool = False) -> dict[str, Path]:
    """Where a report's files go, beside the figure."""
    suffixes = ("csv", "json", "md", "html", *(["tex"] if is_paper else []))
    return {"plot": plot, **{s: plot.with_suffix(f".{s}") for s in suffixes}}


def check_report(plot: Path, form: str = PARETO_FORMAT, *, is_paper: bool = False) -> None:
    """Fail now if a report of that format could not be written later.

    Raises:
        UserError: its folder is not writable, or one of its places is taken by another file.
    """
    paths = report_paths(plot, is_paper)
    document = paths["json"]

    def owns(path: Path) -> bool:
        """By the mark in it, by its columns, or where the report's .json names it."""
        if is_marked(path) or (path == paths["csv"] and _has_columns(path, REPORT_COLUMNS[form])):
            return True
        report = json_object(document)
        if report.get("format") != form:
            return False
        written = report.get("out", {}).values()
        return path == document or path.name in {Path(str(name)).name for name in written}

    kind = Kind(f"a file of a {form.partition('/')[0]} report", owns)
    for path in paths.values():
        check_output(path, kind=kind)
