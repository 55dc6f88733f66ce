"""Schedules of equal FLOPs against each other on the same images; prints Markdown.

    python benchmarks/schedules.py --model MODEL --data DATA --schedule schedule.json

What `tpcli schedule` found against constant r and against the same share of the tokens at every
block, both cut until they cost no less than it. Two measures: top-1, and the KL divergence from the
unpooled model's class probabilities, which a few thousand images tell apart much better.
Differences are paired, with their 95% intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcli import data, pool
from tpcli.budget import BudgetSolver
from tpcli.devices import autocast, pick_device
from tpcli.flops import count_flops
from tpcli.models import load
from tpcli.options import PoolingOptions, pooling_options
from tpcli.schedule import parse
from tpcli.surgery import unpool
from tpcli.surgery.geometry import patch_tokens

STEPS = 16
"""Halvings of the interval of shares."""


class Measured(NamedTuple):
    """Of each image: whether it was right, and the KL divergence. ratio: FLOPs over the base's."""

    ratio: float
    right: Tensor
    divergence: Tensor


class Comparison:
    """One model and its images, measured under one schedule after another."""

    def __init__(self, model: nn.Module, images: data.ImageData, options: PoolingOptions) -> None:
        self.model, self.images, self.options = model, images, options
        self.device = pick_device("auto")
        self.base_flops = count_flops(unpool(model.eval())).total
        logits, self.targets = self.logits()
        self.right = (logits.argmax(1) == self.targets).float()
        self.wanted = logits.log_softmax(1)

    def logits(self) -> tuple[Tensor, Tensor]:
        """Of all images, and their classes."""
        found: list[Tensor] = []
        targets: list[Tensor] = []
        self.model.to(self.device)
        with torch.inference_mode(), autocast(self.device, self.device.type == "cuda"):
            for batch, classes in data.batches(self.images, 200):
                images = self.images.normalize(batch.to(self.device))
                found.append(self.model(images).float().cpu())
                targets.append(classes)
        return torch.cat(found), torch.cat(targets)

    def ratio(self, tokens: list[int]) -> float:
        """FLOPs under a schedule over those without."""
        pool(self.model, tokens, self.options)
        return count_flops(self.model).total / self.base_flops

    def of(self, tokens: list[int]) -> Measured:
        """Measure one schedule."""
        ratio = self.ratio(tokens)
        logits, _ = self.logits()
        terms = F.kl_div(logits.log_softmax(1), self.wanted, log_target=True, reduction="none")
        return Measured(ratio, (logits.argmax(1) == self.targets).float(), terms.sum(1))


def same_share(
    patches: int, blocks: int, ratio: Callable[[list[int]], float], wanted: float
) -> list[int]:
    """The strongest cut by one share at every block that costs no less than `wanted`."""
    low, high, best = 0.3, 1.0, [patches] * blocks
    for _ in range(STEPS):
        share = (low + high) / 2
        tokens = [max(1, round(patches * share ** (b + 1))) for b in range(blocks)]
        if ratio(tokens) >= wanted:
            high, best = share, tokens
        else:
            low = share
    return best


def constant(solver: BudgetSolver, wanted: float) -> list[int]:
    """The constant-r schedule that costs `wanted` or just more."""
    total = 0
    while solver.flops(total + 1) >= wanted * solver.base_flops:
        total += 1
    return list(solver.tokens(total))


def interval(values: Tensor, scale: float = 1.0) -> str:
    """Mean and half the width of its 95% interval."""
    return f"{scale * values.mean():+.4g} ± {scale * 1.96 * values.std() / len(values) ** 0.5:.2g}"


def cells(found: Measured, first: Measured | None) -> str:
    """The cells of a row: what was measured, and its differences to the first of its group."""
    against = "| |"
    if first is not None:
        against = (
            f"{interval(found.divergence - first.divergence)} "
            f"| {interval(found.right - first.right, 100)} |"
        )
    return (
        f"{found.ratio:.4f} | {100 * found.right.mean():.2f} "
        f"| {found.divergence.mean():.4f} | {against}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--schedule", nargs="+", required=True, help="specs, or files")
    parser.add_argument("--method", default="ward")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    model, options = loaded.model, pooling_options(arguments.method)
    images = data.create(arguments.data, loaded.data_config, limit=arguments.limit)
    comparison = Comparison(model, images, options)
    patches, blocks = patch_tokens(model), len(model.blocks)  # type: ignore[arg-type]
    solver = BudgetSolver(model, options)
    print(f"{len(comparison.right)} images, unpooled top-1 {100 * comparison.right.mean():.2f}%\n")
    print(
        "| schedule | share of FLOPs | top-1 | KL | its KL is higher by | its top-1 is higher by |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for spec in arguments.schedule:
        tokens = list(parse(spec, patches, blocks).tokens)
        ratio = comparison.ratio(tokens)
        first: Measured | None = None
        for name, rival in (
            (f"searched: {','.join(map(str, tokens))}", tokens),
            ("same share at every block", same_share(patches, blocks, comparison.ratio, ratio)),
            ("constant r", constant(solver, ratio)),
        ):
            found = comparison.of(rival)
            print(f"| {name} | {cells(found, first)}", flush=True)
            first = first or found


if __name__ == "__main__":
    main()
