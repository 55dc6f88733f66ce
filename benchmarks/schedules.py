"""Families of schedules at equal FLOPs, on the same images; prints Markdown.

    python benchmarks/schedules.py --model MODEL MODEL --data DATA --cache FOLDER

For every model, method and budget: top-1 under the default family, under constant r, and under what
`tpcli schedule` finds (`--searched`); then the headline of each method under each family alone.
p values are of exact McNemar tests, corrected for their number by Holm's rule.

Points are those of `tpcli pareto` and lie in its cache. So a run that was stopped goes on, several
runs share the work, and `tpcli pareto --cache FOLDER` draws from the same points.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tpcli import data
from tpcli.models import load, told_apart
from tpcli.options import pooling_options
from tpcli.pareto import ModelSource, Point, SweepOptions, SweepResult, sweep
from tpcli.pareto.cache import default_folder
from tpcli.pareto.compare import holm, paired
from tpcli.search import calibration_data

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
    poolings = [pooling_options(name) for name in arguments.method]
    return {
        family: sweep(
            sources,
            SweepOptions(poolings, arguments.budget, families=(family,)),
            arguments.cache,
        )
        for family in [DEFAULT, CONSTANT, *([SEARCHED] if arguments.searched else [])]
    }


def by_key(result: SweepResult) -> dict[Key, Point]:
    """Pooled points by model, method and budget."""
    return {(p.model, p.method, p.budget): p for p in result.points if not p.is_base}


def table(results: dict[str, SweepResult]) -> Iterator[str]:
    """One line per model, method and budget; p against the default family."""
    bases = {p.model: p.score for p in results[DEFAULT].points if p.is_base}
    default = by_key(results[DEFAULT])
    rivals = {family: by_key(results[family]) for family in results if family != DEFAULT}
    pairs = [(family, key) for family, points in rivals.items() for key in points if key in default]
    p_values = holm([paired(default[key], rivals[family][key])[3] for family, key in pairs])
    corrected = dict(zip(pairs, p_values, strict=True))
    yield (
        "| model (unpooled) | method | budget | default | "
        + " | ".join(f"{family} | p" for family in rivals)
        + " |"
    )
    yield "| --- | --- | ---: | ---: |" + " ---: | ---: |" * len(rivals)
    for key, point in default.items():
        cells = [f"{point.model} ({bases[point.model]:.2f})", point.method, point.asked]
        cells.append(f"{point.score:.2f}")
        for family, points in rivals.items():
            other = points.get(key)
            cells += [f"{other.score:.2f}", f"{corrected[family, key]:.2g}"] if other else ["", ""]
        yield "| " + " | ".join(cells) + " |"


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
            yield f"- {family}, {headline.method}, {headline.model}: {', '.join(saved)}{more}"


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["demo"])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--method", nargs="+", default=["ward"])
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    )
    parser.add_argument("--searched", action="store_true", help="search schedules too")
    parser.add_argument("--cache", type=Path, default=default_folder())
    results = sweeps(parser.parse_args())
    print("\n".join([*table(results), "", *headlines(results)]))


if __name__ == "__main__":
    main()
