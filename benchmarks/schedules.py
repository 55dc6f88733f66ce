"""Schedules of equal FLOPs against each other, on the same images; prints Markdown.

    python benchmarks/schedules.py --model MODEL MODEL --data DATA --rows rows.jsonl

For every model, method and budget: the default family, constant r, and what `tpcli schedule` finds
(`--searched`). Two measures: top-1, and the KL divergence from the unpooled model's class
probabilities, which tells schedules apart on fewer images. Differences are paired; p values are of
exact McNemar tests, corrected for their number by Holm's rule. Rows are written as they are
measured, and a run that was stopped goes on after them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from tpcli import data, pool
from tpcli.budget import BudgetSolver
from tpcli.devices import autocast, pick_device
from tpcli.models import load
from tpcli.options import PoolingOptions, pooling_options
from tpcli.schedule import Budget, Tokens
from tpcli.search import SearchOptions, calibration_data, search
from tpcli.surgery import unpool

DEFAULT, CONSTANT, SEARCHED = "default", "constant", "searched"


@dataclass(frozen=True)
class Row:
    """One measured schedule. right: bits of the images that it got right, packed, in hex."""

    model: str
    method: str
    kind: str
    budget: float
    tokens: Tokens
    ratio: float
    top1: float
    kl: float
    count: int
    right: str

    @property
    def key(self) -> tuple[str, str, str, float]:
        """What was measured."""
        return self.model, self.method, self.kind, self.budget

    @property
    def correct(self) -> np.ndarray[Any, Any]:
        """Whether each image was right: (count,) bool."""
        bits = np.frombuffer(bytes.fromhex(self.right), dtype=np.uint8)
        return np.unpackbits(bits, count=self.count).astype(bool)


class Images:
    """One model's images, in memory, and what it says of them without pooling."""

    def __init__(self, model: nn.Module, images: data.ImageData) -> None:
        self.model = unpool(model.eval())
        self.device = pick_device("auto")
        self.model.to(self.device)
        self.images = images
        self.batches = list(data.batches(images, 200))
        self.targets = torch.cat([targets for _, targets in self.batches])
        self.base = self.logits()

    def logits(self) -> Tensor:
        """Of all images: (images, classes), on the CPU."""
        found: list[Tensor] = []
        with torch.inference_mode(), autocast(self.device, self.device.type == "cuda"):
            for batch, _ in self.batches:
                images = self.images.normalize(batch.to(self.device))
                found.append(self.model(images).float().cpu())
        return torch.cat(found)

    def measure(self, tokens: Tokens, options: PoolingOptions | None) -> dict[str, Any]:
        """Top-1, KL and what was right, under one schedule."""
        logits = self.base
        if options is not None:
            pool(self.model, tokens, options)
            logits = self.logits()
            unpool(self.model)
        wanted = self.base.log_softmax(1)
        kl = F.kl_div(logits.log_softmax(1), wanted, log_target=True, reduction="none").sum(1)
        right = (logits.argmax(1) == self.targets).numpy()
        return {
            "top1": 100 * float(right.mean()),
            "kl": float(kl.double().mean()),
            "count": len(right),
            "right": np.packbits(right).tobytes().hex(),
        }


def rows(arguments: argparse.Namespace, done: set[Any]) -> Iterator[Row]:
    """What has not been measured yet."""
    for spec in arguments.model:
        images: Images | None = None
        loaded = load(spec)
        wanted = [
            (method, kind, budget)
            for method in arguments.method
            for kind in kinds(arguments)
            for budget in arguments.budget
            if (loaded.name, method, kind, budget) not in done
        ]
        solvers: dict[str, BudgetSolver] = {}
        found: dict[str, Any] = {}
        depth = len(loaded.model.blocks)  # type: ignore[arg-type]
        if (loaded.name, "none", DEFAULT, 1.0) not in done:
            images = images or opened(loaded, arguments)
            yield Row(loaded.name, "none", DEFAULT, 1.0, (), 1.0, **images.measure((), None))
        for method, kind, budget in wanted:
            images = images or opened(loaded, arguments)
            options = pooling_options(method)
            if method not in solvers:
                solvers[method] = BudgetSolver(loaded.model, options)
            solver = solvers[method]
            if kind == SEARCHED:
                if method not in found:
                    training = calibration_data(arguments.data, loaded.data_config)
                    wanted_budgets = SearchOptions(budgets=tuple(arguments.budget))
                    found[method] = search(loaded.model, training, options, wanted_budgets)
                tokens = found[method].schedule(budget).tokens
            else:
                tokens = solver.solve(Budget(budget, is_constant=kind == CONSTANT))
            assert len(tokens) == depth
            ratio = solver.cost.exact(tokens)
            measured = images.measure(tokens, options)
            yield Row(loaded.name, method, kind, budget, tokens, ratio, **measured)


def opened(loaded: Any, arguments: argparse.Namespace) -> Images:
    """The model's images, and the unpooled model's answers."""
    return Images(
        loaded.model, data.create(arguments.data, loaded.data_config, limit=arguments.limit)
    )


def kinds(arguments: argparse.Namespace) -> list[str]:
    """The kinds of schedule that are asked for."""
    return [DEFAULT, CONSTANT, *([SEARCHED] if arguments.searched else [])]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: each p value times the number of those that are not smaller."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, highest)
    return [float(p) for p in corrected]


def p_value(first: Row, second: Row) -> float:
    """Exact McNemar test of two rows on the same images."""
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((~first.correct & second.correct).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def table(measured: Sequence[Row]) -> None:
    """Print one line per model, method and budget."""
    by_key = {row.key: row for row in measured}
    bases = {row.model: row.top1 for row in measured if row.method == "none"}
    first = [row for row in measured if row.kind == DEFAULT and row.method != "none"]
    rivals = [
        (row, by_key[rival])
        for row in first
        for kind in (CONSTANT, SEARCHED)
        if (rival := (row.model, row.method, kind, row.budget)) in by_key
    ]
    p_values = holm([p_value(row, rival) for row, rival in rivals])
    corrected = {rival.key: p for (_, rival), p in zip(rivals, p_values, strict=True)}
    print(
        "| model (unpooled) | method | budget | default | KL | constant r | KL | p | searched | p |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in first:
        cells = [f"{row.model} ({bases[row.model]:.2f})", row.method, f"{row.budget:g}"]
        cells += [f"{row.top1:.2f}", f"{row.kl:.4f}"]
        for kind in (CONSTANT, SEARCHED):
            rival = by_key.get((row.model, row.method, kind, row.budget))
            if rival is None:
                cells += [""] * (3 if kind == CONSTANT else 2)
                continue
            cells += [f"{rival.top1:.2f}", *([f"{rival.kl:.4f}"] if kind == CONSTANT else [])]
            cells.append(f"{corrected[rival.key]:.2g}")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["demo"])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--method", nargs="+", default=["ward"])
    parser.add_argument("--budget", nargs="+", type=float, default=[0.8, 0.6, 0.5, 0.4, 0.3, 0.2])
    parser.add_argument("--searched", action="store_true", help="search schedules too")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rows", type=Path, default=Path("schedules.jsonl"))
    arguments = parser.parse_args()
    lines = arguments.rows.read_text().splitlines() if arguments.rows.exists() else []
    measured = [
        Row(**{**json.loads(line), "tokens": tuple(json.loads(line)["tokens"])}) for line in lines
    ]
    with arguments.rows.open("a") as file:
        for row in rows(arguments, {row.key for row in measured}):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            measured.append(row)
    table(measured)


if __name__ == "__main__":
    main()
