"""How much each method changes a model's answers at the same budget; prints Markdown.

    python benchmarks/fidelity.py --model MODEL --data DATA --methods ward tome --budgets 0.6 0.4

The KL divergence from the unpooled class probabilities, under the constant-r schedule of each
budget: it needs no labels, and tells methods apart that lie within each other's interval in top-1.
Differences to the first method are paired on the same images, with their 95% intervals.
"""

from __future__ import annotations

import argparse

from schedules import Comparison, cells

from tpcli import data
from tpcli.budget import BudgetSolver
from tpcli.models import load
from tpcli.options import pooling_options


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--methods", nargs="+", default=["ward", "tome", "atc", "k-medoids"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    images = data.create(arguments.data, loaded.data_config, limit=arguments.limit)
    comparison = Comparison(loaded.model, images, pooling_options())
    print(f"{len(comparison.right)} images, unpooled top-1 {100 * comparison.right.mean():.2f}%\n")
    print("| budget | method | share of FLOPs | top-1 | KL | KL higher by | top-1 higher by |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    options = {method: pooling_options(method) for method in arguments.methods}
    solvers = {method: BudgetSolver(loaded.model, options[method]) for method in options}
    for budget in arguments.budgets:
        first = None
        for method in arguments.methods:
            comparison.options = options[method]
            found = comparison.of(list(solvers[method].solve(budget)))
            print(f"| {budget:g} | `{method}` | {cells(found, first)}", flush=True)
            first = first or found


if __name__ == "__main__":
    main()
