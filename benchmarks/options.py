"""What each choice of a method is worth at equal FLOPs, on the same images; prints Markdown.

    python benchmarks/options.py --model MODEL MODEL --data DATA --budget 0.4 0.3

For every model and budget: top-1 of the method as it is, under the default schedule; then by how
much it changes with each other value of each option, and with fewer places to pool at. Bold is what
differs by p < 0.05, by exact McNemar tests, corrected for their number by Holm's rule.

Points lie in the cache of `tpcli pareto`: a run that was stopped goes on, several share the work.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from tpcli import data
from tpcli.config.methods import describe
from tpcli.config.options import PoolingOptions, pooling_options, replaced
from tpcli.errors import UserError
from tpcli.models.load import load, told_apart
from tpcli.pareto import ModelSource, Point, SweepOptions, sweep
from tpcli.pareto.cache import default_folder
from tpcli.search.variants import block_sets
from tpcli.stats import drop, holm, paired_p_value, signed

VALUES = {
    "metric_dim": (32,),
    "iterations": (1, 3),
    "position": ("block",),
    "proportional_attention": (False,),
}
"""Of options that don't list theirs, or where one of those is what is taken anyway."""

DEFAULT = "default"
Found = dict[tuple[str, str, str], Point]
"""Points by what was changed, model and budget."""


def variants(method: str) -> Iterator[tuple[str, PoolingOptions]]:
    """The method as it is, then with each other value of each option, by what changes."""
    options = pooling_options(method)
    yield DEFAULT, options
    for item in fields(PoolingOptions)[1:]:
        if item.name not in describe(method)[0].options:
            continue
        for value in VALUES.get(item.name, item.metadata["choices"]):
            try:
                changed = replaced(options, **{item.name: value})
            except UserError:
                continue
            flag = item.name.replace("_", "-")
            if changed != options:
                yield f"--no-{flag}" if value is False else f"--{flag} {value}", changed


def measure(arguments: argparse.Namespace) -> Found:
    """All points."""
    sources = [
        ModelSource(loaded, data.create(arguments.data, loaded.data_config))
        for loaded in told_apart({spec: load(spec) for spec in arguments.model})
    ]
    found: Found = {}
    poolings = dict(variants(arguments.method))
    options = SweepOptions(list(poolings.values()), arguments.budget)
    points = sweep(sources, options, arguments.cache).points
    for changed, pooling in poolings.items():
        for point in points:
            if point.options == pooling.to_dict():
                found[changed, point.model, point.target] = point
    depth = min(len(source.loaded.model.blocks) for source in sources)  # type: ignore[arg-type]
    for budget, blocks in itertools.product(arguments.budget, block_sets(depth)):
        spec = "flops:{}@" + ",".join(map(str, blocks))
        options = SweepOptions([poolings[DEFAULT]], schedules=[spec.format(budget)])
        with suppress(UserError):  # so few places can't meet the budget
            for point in sweep(sources, options, arguments.cache).points:
                if not point.is_base:
                    found[spec.format("..."), point.model, f"{budget:g}"] = point
    return found


def table(found: Found) -> Iterator[str]:
    """A line for each change, a column for each model and budget."""
    columns = [key[1:] for key in found if key[0] == DEFAULT]
    pairs = {key: (found[DEFAULT, key[1], key[2]].each, found[key].each) for key in found}
    changes = {key: pair for key, pair in pairs.items() if key[0] != DEFAULT}
    corrected = holm([paired_p_value(*pair) for pair in changes.values()])
    p_values = dict(zip(changes, corrected, strict=True))
    yield "| |" + "".join(f" {model}, {budget} |" for model, budget in columns)
    yield "| --- |" + " ---: |" * len(columns)
    for changed in dict.fromkeys(key[0] for key in found):
        cells = []
        for model, budget in columns:
            key = (changed, model, budget)
            if changed == DEFAULT:
                cells.append(f"{found[key].score:.2f}")
            elif key in pairs:
                words = signed(-drop(*pairs[key]).points)
                cells.append(f"**{words}**" if p_values[key] < 0.05 else words)
            else:
                cells.append("")
        yield f"| `{changed}` | {' | '.join(cells)} |"


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["demo"])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--budget", nargs="+", type=float, default=[0.4, 0.3, 0.2])
    parser.add_argument("--cache", type=Path, default=default_folder())
    print("\n".join(table(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
