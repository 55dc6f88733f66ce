"""Families of schedules at equal FLOPs, on the same images; prints Markdown.

    python benchmarks/schedules.py --model MODEL MODEL --data DATA --cache FOLDER

For every model, method and budget: top-1 under the default family, under constant r, and under what
`tpcli schedule` finds (`--searched`); then p values, default against each of the others, of exact
McNemar tests, corrected for their number by Holm's rule; then the headline of each method under
each family alone. Bold is the default where it is better than another by p < 0.05, and what is
better than it.

Points are those of `tpcli pareto` and lie in its cache. So a run that was stopped goes on, several
runs share the work, and `tpcli pareto --cache FOLDER` draws from the same points.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.models.load import load, told_apart
from tpcli.pareto import ModelSource, Point, SweepOptions, SweepResult, sweep
from tpcli.pareto.cache import default_folder
from tpcli.search import calibration_data
from tpcli.stats import holm, paired_p_value

DEFAULT, CONSTANT, SEARCHED = "default", "constant", "search"
Key = tuple[str, str, float | None]


def sweeps(arguments: argparse.Namespace) -> dict[str, SweepResult]:
    """All points, family by family."""
    sources = [
        ModelSource(
            loaded,
            data.create(arguments.data, loaded.data_config),
            calibration=calibration_data(arguments.data, loaded.data_config),
        )
        for loaded in told_apart({spec: load(spec) for spec in arguments.model})
    ]
    methods = {DEFAULT: arguments.method, CONSTANT: arguments.method, SEARCHED: arguments.searched}
    return {
        family: sweep(
            sources,
            SweepOptions(
                [pooling_options(name) for name in names], arguments.budget, families=(family,)
            ),
            arguments.cache,
        )
        for family, names in methods.items()
        if names
    }


def by_key(result: SweepResult) -> dict[Key, Point]:
    """Pooled points by model, method and budget."""
    return {(p.model, p.method, p.budget): p for p in result.points if not p.is_base}


def corrected(results: dict[str, SweepResult]) -> dict[tuple[str, Key], float]:
    """p of each point against the default family's, by family and key."""
    default = by_key(results[DEFAULT])
    rivals = {family: by_key(results[family]) for family in results if family != DEFAULT}
    pairs = [(family, key) for family, points in rivals.items() for key in points if key in default]
    p_values = holm(
        [paired_p_value(default[key].each, rivals[family][key].each) for family, key in pairs]
    )
    return dict(zip(pairs, p_values, strict=True))


def tables(results: dict[str, SweepResult]) -> Iterator[str]:
    """Top-1 under each family, then p values."""
    found = {family: by_key(result) for family, result in results.items()}
    p_values = corrected(results)
    rivals = [family for family in results if family != DEFAULT]

    def scores(key: Key) -> str:
        if key not in found[DEFAULT]:  # out of the method's reach
            return ""
        own = found[DEFAULT][key].score
        others = [(found[f][key].score, p_values[f, key] < 0.05) for f in rivals if key in found[f]]
        told = [score for score, is_told in others if is_told]
        best = any(score < own for score in told) and not any(score > own for score in told)
        cells = [(own, best), *((score, is_told and score > own) for score, is_told in others)]
        return " / ".join(
            f"**{score:.2f}**" if is_bold else f"{score:.2f}" for score, is_bold in cells
        )

    def tests(key: Key) -> str:
        return " / ".join(f"{p_values[f, key]:.2g}" for f in rivals if (f, key) in p_values)

    yield from table(results, " / ".join(results), scores)
    yield from table(results, f"p of the default against {' / '.join(rivals)}", tests)


def table(results: dict[str, SweepResult], title: str, cell: Callable[[Key], str]) -> Iterator[str]:
    """A line for each model and method, a column for each budget."""
    bases = {p.model: p.score for p in results[DEFAULT].points if p.is_base}
    keys = list(by_key(results[DEFAULT]))
    budgets = list(dict.fromkeys(budget for _, _, budget in keys))
    yield f"{title}:\n"
    yield "| model (unpooled) | method |" + "".join(f" {budget:g} |" for budget in budgets)
    yield "| --- | --- |" + " ---: |" * len(budgets)
    for model, method in dict.fromkeys((model, method) for model, method, _ in keys):
        cells = [cell((model, method, budget)) for budget in budgets]
        yield f"| {model} ({bases[model]:.2f}) | {method} | {' | '.join(cells)} |"
    yield ""


def headlines(results: dict[str, SweepResult]) -> Iterator[str]:
    """What each family saves and gains, method by method, and by model where there are several."""
    for family, result in results.items():
        for headline in (*result.headlines, *result.by_model):
            saved = [
                f"{below}: {saving.words}"
                for below, saving in headline.same_accuracy_flops_saving.items()
                if saving is not None
            ]
            gain = headline.same_flops_accuracy_gain
            more = "" if gain is None else f"; gain {gain.value:+.2f} ({gain.ci95})"
            yield f"- {family}, {headline.curve}, {headline.model}: {', '.join(saved)}{more}"


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["demo"])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--method", nargs="+", default=["ward"])
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    )
    parser.add_argument("--searched", nargs="+", default=[], help="methods to search for, too")
    parser.add_argument("--cache", type=Path, default=default_folder())
    results = sweeps(parser.parse_args())
    print("\n".join([*tables(results), *headlines(results)]))


if __name__ == "__main__":
    main()
