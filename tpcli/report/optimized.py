"""An optimized model as a folder: the pooled model, optimize.json and a page on what was tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.config.measures import MEASURES
from tpcli.config.outputs import OPTIMIZED_DOCUMENT, OPTIMIZED_MODEL_KIND, OPTIMIZED_PAGE
from tpcli.config.schedule import Schedule
from tpcli.models.load import LoadedModel
from tpcli.models.save import save
from tpcli.optimize.race import Runner
from tpcli.optimize.result import Optimized
from tpcli.stats import signed
from tpcli.surgery import PoolingSpec, insert, unpooled
from tpcli.system.files import check_output, replacing

from .context import ReportContext
from .figure import BASE_COLOUR, COLOURS, MARKERS, embedded, new_figure, tidy, write_title
from .pareto import PER_IMAGE, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHOSEN = "#B00020"


def save_optimized(
    loaded: LoadedModel, result: Optimized, context: ReportContext, folder: Path, *, force: bool
) -> None:
    """Write the folder, whole or not at all; the model is left as it was.

    Raises:
        UserError: the folder exists and `force` is off, or the model can't be saved.
    """
    assert result.chosen is not None
    check_output(folder, force, is_folder=True, kind=OPTIMIZED_MODEL_KIND)
    chosen = result.chosen.candidate
    schedule = Schedule(
        chosen.tokens, result.patch_tokens, made_by={"chosen_on": dict(result.choice)}
    )
    document = {**result.to_dict(), "made_by": context.to_dict()}
    model, made_on = loaded.model, list(loaded.made_on) or None
    with unpooled(model), replacing(folder) as fresh:
        insert(model, PoolingSpec(schedule, chosen.plan.options))
        save(model, fresh, made_on=made_on)
        (fresh / OPTIMIZED_DOCUMENT).write_text(
            json.dumps(document, indent=2) + "\n", encoding="utf-8"
        )
        (fresh / OPTIMIZED_PAGE).write_text(optimized_html(result, context), encoding="utf-8")


def optimized_html(result: Optimized, context: ReportContext) -> str:
    """The page: verdict, what was tried, tokens by block, how it was made."""
    return render(
        "optimized.html",
        context=context,
        result=result,
        chosen=result.chosen,
        convention=PER_IMAGE,
        noun=MEASURES[result.measure].noun,
        plot=embedded(optimized_figure(result, context.title)),
        rows=[_row(t, result) for t in sorted(result.tried, key=lambda t: t.candidate.time)],
    )


def _row(tried: Runner, result: Optimized) -> dict[str, Any]:
    candidate, lost = tried.candidate, tried.lost
    is_chosen = result.chosen is not None and candidate == result.chosen.candidate
    return {
        "chosen": is_chosen,
        "schedule": candidate.plan.label,
        "speed-up, forecast": f"{candidate.speedup:.2f}x",
        "of base FLOPs": f"{100 * candidate.flops:.0f}%",
        "change": signed(-lost.points),
        "95% interval": f"{signed(-lost.high)} to {signed(-lost.low)}",
        "images": f"{lost.count:,}" + (f", {tried.out}" if tried.out else ""),
        "tokens": " ".join(map(str, candidate.tokens)),
    }


def optimized_figure(result: Optimized, title: str) -> Figure:
    """Left: points lost against the speed-up, as forecast. Right: tokens behind each block."""
    figure = new_figure(10, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    write_title(left, title)
    _draw_tried(left, result)
    _draw_tokens(right, result)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    for axes in (left, right):
        tidy(axes)
    return figure


def _draw_tried(axes: Axes, result: Optimized) -> None:
    for i, label in enumerate(dict.fromkeys(t.candidate.plan.label for t in result.tried)):
        own = [t for t in result.tried if t.candidate.plan.label == label]
        changes = [-t.lost.points for t in own]
        spread = [
            [t.lost.high - t.lost.points for t in own],
            [t.lost.points - t.lost.low for t in own],
        ]
        axes.errorbar(
            [t.candidate.speedup for t in own], changes, yerr=spread,
            color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=5,
            linestyle="none", elinewidth=0.7, capsize=2, label=label,
        )  # fmt: skip
    axes.plot(1, 0, "*", color=BASE_COLOUR, markersize=13, label="without pooling")
    if result.bench is not None and result.checked is not None:
        lost = result.checked.lost
        axes.errorbar(
            [result.bench.speedup], [-lost.points],
            yerr=[[lost.high - lost.points], [lost.points - lost.low]],
            color=CHOSEN, marker="*", markersize=15, elinewidth=1.2, capsize=3, linestyle="none",
            label="chosen: measured, held-out images", zorder=5,
        )  # fmt: skip
    targets = result.targets
    if targets.max_drop is not None:
        axes.axhline(-targets.max_drop, color=CHOSEN, linewidth=0.9, linestyle="--")
    if targets.speedup is not None:
        axes.axvline(targets.speedup, color=CHOSEN, linewidth=0.9, linestyle="--")
    drops = [t.lost.points for t in result.tried if not t.out]
    deepest = max(3 * (targets.max_drop or 1), *drops)
    axes.set_ylim(bottom=-1.15 * min(deepest, 10 * max(targets.max_drop or 1, 0.5)))
    axes.set_xlabel("times as fast as the model without pooling")
    axes.set_ylabel(f"change of {MEASURES[result.measure].noun}, points")


def _draw_tokens(axes: Axes, result: Optimized) -> None:
    if result.chosen is None:
        axes.set_axis_off()
        return
    tokens = [result.patch_tokens, *result.chosen.candidate.tokens]
    axes.bar(range(len(tokens)), tokens, color=COLOURS[0], width=0.75)
    axes.set_xticks(range(len(tokens)), ["in", *map(str, range(len(tokens) - 1))], fontsize=8)
    axes.set_xlabel("behind block")
    axes.set_ylabel("patch tokens")
