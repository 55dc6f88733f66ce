"""Training speed and peak memory of a pooled model against the unpooled one, in one run.

    python benchmarks/finetune_speed.py --model MODEL --schedule flops:0.58

Steps of the two take turns on the same random images, so that whatever else the machine does hits
both; times are medians. Memory is the peak of a process that trains one of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time

import torch
from torch import nn

from tpcli import pool
from tpcli.models.load import load
from tpcli.surgery.geometry import input_size
from tpcli.system.devices import autocast, pick_device, synchronize


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--schedule", default="flops:0.58")
    parser.add_argument("--method", default=None)
    parser.add_argument("--position", default=None)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    document: dict[str, object] = vars(arguments) | {"threads": torch.get_num_threads()}
    for name in ("base", "pooled"):  # first: a new process counts its parent's memory as its own
        document[f"{name}_peak_mb"] = peak_megabytes(arguments, name == "pooled")
    steps = {name: Step(arguments, name == "pooled") for name in ("base", "pooled")}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.steps + 2):
        for name, step in steps.items():
            times[name].append(step())
    for name, values in times.items():
        median = statistics.median(values[2:])
        document[f"{name}_images_per_second"] = arguments.batch_size / median
    base, pooled = (statistics.median(values[2:]) for values in times.values())
    document["speedup"] = base / pooled
    print(json.dumps(document, indent=2))


class Step:
    """A training step on random images."""

    def __init__(self, arguments: argparse.Namespace, pooled: bool) -> None:
        self.device = pick_device(arguments.device)
        self.amp = arguments.precision == "bf16"
        model: nn.Module = load(arguments.model).model
        if pooled:
            pool(model, arguments.schedule, arguments.method, position=arguments.position)
        self.model = model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        batch, size = arguments.batch_size, input_size(model)
        self.images = torch.randn(batch, *size, device=self.device)
        self.targets = torch.randint(int(model.num_classes), (batch,), device=self.device)  # type: ignore[arg-type]

    def __call__(self) -> float:
        """Seconds."""
        synchronize(self.device)
        began = time.perf_counter()
        with autocast(self.device, self.amp):
            logits = self.model(self.images)
        nn.functional.cross_entropy(logits.float(), self.targets).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.device)
        return time.perf_counter() - began


def peak_megabytes(arguments: argparse.Namespace, pooled: bool) -> float:
    """Peak memory of a process of its own, after three steps."""
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        return processes.apply(_peak, (arguments, pooled))


def _peak(arguments: argparse.Namespace, pooled: bool) -> float:
    step = Step(arguments, pooled)
    for _ in range(3):
        step()
    if step.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
