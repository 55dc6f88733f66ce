"""Methods at equal FLOPs under the default schedule, on the same images; prints Markdown.

    python benchmarks/methods.py --model MODEL --data DATA --method ward tome evit

For every model: the score of the first method at each budget, then how far each other one is from
it, and in brackets p of the exact McNemar test, corrected by Holm's rule for all comparisons
together. Bold is what differs by p < 0.05. The best on average over the budgets stands first.

Points lie in the cache of `tpcli pareto`: a run that was stopped goes on, several share the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.models.load import load, told_apart
from tpcli.pareto import Comparison, ModelSource, SweepOptions, SweepResult, sweep
from tpcli.pareto.cache import default_folder


def measure(arguments: argparse.Namespace) -> SweepResult:
    """All points."""
    sources = [
        ModelSource(loaded, data.create(arguments.data, loaded.data_config))
        for loaded in told_apart({spec: load(spec) for spec in arguments.model})
    ]
    poolings = [pooling_options(name) for name in arguments.method]
    return sweep(sources, SweepOptions(poolings, arguments.budget), arguments.cache)


def table(result: SweepResult, model: str) -> Iterator[str]:
    """A line for each method, a column for each budget."""
    base, *own = (p for p in result.points if p.model == model)
    leader = own[0].method
    first = {p.target: f"{p.score:.2f}" for p in own if p.method == leader}
    found: dict[str, dict[str, Comparison]] = {}
    for entry in result.comparisons:
        if entry.model == model:
            found.setdefault(entry.method, {})[entry.schedule] = entry

    def level(method: str) -> float:
        return -mean(entry.difference for entry in found[method].values())

    yield f"| {model} ({base.score:.2f}) | {' | '.join(first)} |"
    yield "| --- |" + " ---: |" * len(first)
    yield f"| `{leader}` | {' | '.join(first.values())} |"
    for method in sorted(found, key=level):
        cells = [words(found[method].get(asked)) for asked in first]
        yield f"| `{method}` | {' | '.join(cells)} |"
    yield ""


def words(entry: Comparison | None) -> str:
    """The difference and its p; nothing where the method can't meet the budget."""
    if entry is None:
        return ""
    p = f"{entry.p_holm:.3f}" if entry.p_holm >= 0.001 else "<.001"
    text = f"{entry.difference:+.2f} ({p})"
    return f"**{text}**" if entry.p_holm < 0.05 else text


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["demo"])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--method", nargs="+", default=["ward", "tome", "k-medoids", "atc"])
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    )
    parser.add_argument("--cache", type=Path, default=default_folder())
    result = measure(parser.parse_args())
    for model in dict.fromkeys(p.model for p in result.points):
        print("\n".join(table(result, model)))


if __name__ == "__main__":
    main()
