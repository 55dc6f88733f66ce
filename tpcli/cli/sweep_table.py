"""What `tpcli pareto` prints of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tpcli.measures import MEASURES

if TYPE_CHECKING:
    from tpcli.pareto import Point, SweepResult
    from tpcli.report import ReportContext


def print_sweep(
    result: SweepResult,
    context: ReportContext,
    written: Sequence[str],
    command_of: Callable[[Point], str],
) -> None:
    """A table for each model, the headlines, commands of the frontier, and the verdict."""
    from tpcli.cli import render
    from tpcli.pareto import recommend
    from tpcli.report.document import table_rows

    measure = MEASURES[result.points[0].measure]
    names = {
        "method": "method",
        "budget": "budget",
        "gflops": "GFLOPs",
        "ratio": "of base",
        measure.name: measure.label,
        "interval": "95% interval",
        "difference": "difference",
        "speed": "images/s",
        "latency_ms": "ms",
        "speedup": "speed-up",
    }
    spare = ["images/s", "95% interval", "GFLOPs", "ms", "budget", "difference"]
    everything = table_rows(result)
    keys = [key for key in names if key in everything[0]]
    for model in dict.fromkeys(row["model"] for row in everything):
        rows = [[row[key] for key in keys] for row in everything if row["model"] == model]
        title = f"Token Pooling of {model}"
        render.print_table(title, [names[k] for k in keys], rows, spare=spare, group="method")
    render.say(f"{context.count} images of {context.data}. {render.CONVENTION}.")
    for entry in result.headlines:
        for headline in entry.both:
            render.say(headline.words)
    cheap_first = sorted(result.frontier, key=lambda p: p.gflops)
    commands = {command_of(p): p for p in cheap_first if not p.is_base}
    if commands:
        print("\nThe frontier, from cheap to dear:")
    for command, p in commands.items():
        share = f"{100 * p.gflops_ratio:.0f}% of the GFLOPs"
        render.say(f"# {p.model}, {p.method}: {share}, {measure.label} {p.score:.2f}%")
        render.say(command)
    advice = recommend(result.points)
    if advice is not None:
        print()
        render.say(advice.words)
        if advice.point is not None:
            render.say(command_of(advice.point))
    render.say("written: " + ", ".join(written))
