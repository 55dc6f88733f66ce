"""What one pooling costs: time as a share of a block's, growth with N, memory above its input.

    python benchmarks/overhead.py --batch-size 16 --seconds 10

DeiT-S channels (384, 6 heads), float32, N = 64, 196, 576, 1024 patch tokens, of which one in
fifteen goes (r = 13 of 196). Block and poolings are timed in turn, so that the ratios hold on a
machine whose speed drifts; leave it alone all the same. Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tpcli import pool
from tpcli.bench.compare import peak_memory
from tpcli.config.options import pooling_options
from tpcli.surgery import TokenPooling

SIDES = (8, 14, 24, 32)
METHODS = ("ward", "tome", "k-medoids", "k-means", "pitome", "top-k", "evit", "dpc-knn")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each N")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    arguments = parser.parse_args()
    columns = []
    with torch.inference_mode():
        for side in SIDES:
            columns.append(
                measure(side, arguments.methods, arguments.batch_size, arguments.seconds)
            )
    counts = [side * side for side in SIDES]
    print(f"batch {arguments.batch_size}, {torch.get_num_threads()} threads\n")
    print("| share of a block's time | " + " | ".join(f"N={n}" for n in counts), end="")
    print(" | grows as N^ (196 to 1024) | MiB at N=1024 |")
    print("| --- |" + " ---: |" * (len(counts) + 2))
    for name in arguments.methods:
        shares = " | ".join(f"{100 * c[name][0] / c['block'][0]:.1f}%" for c in columns)
        power = math.log(columns[-1][name][0] / columns[1][name][0]) / math.log(1024 / 196)
        print(f"| {name} | {shares} | {power:.2f} | {columns[-1][name][1] / 2**20:.0f} |")
    power = math.log(columns[-1]["block"][0] / columns[1]["block"][0]) / math.log(1024 / 196)
    print(f"| (the block) |{' |' * len(counts)} {power:.2f} | |")


def measure(
    side: int, methods: list[str], batch_size: int, seconds: float
) -> dict[str, tuple[float, int]]:
    """Median seconds and peak bytes of a block and of each method's pooling at N = side^2."""
    n = side * side
    images = torch.randn(batch_size, 3, 16 * side, 16 * side)
    model = timm.create_model("deit_small_patch16_224", img_size=16 * side, depth=1).eval()
    inputs: dict[str, Tensor] = {}
    model.blocks[0].register_forward_pre_hook(lambda _, args: inputs.update(x=args[0]))
    model(images)
    calls: dict[str, Callable[[], Any]] = {"block": partial(model.blocks[0], inputs["x"])}
    for name in methods:
        calls[name] = pooling_call(model, images, name, n - round(n / 15))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    while len(times["block"]) < 5 or time.perf_counter() - began < seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)

    def peak(call: Callable[[], Any]) -> int:
        return peak_memory(call, images.device) or 0

    return {name: (float(np.median(times[name])), peak(calls[name])) for name in calls}


def pooling_call(model: nn.Module, images: Tensor, method: str, k: int) -> Callable[[], Any]:
    """The pooling of a one-block model, as it is called in a forward pass."""
    pooled = pool(copy.deepcopy(model), [k], pooling_options(method))
    (layer,) = (m for m in pooled.modules() if isinstance(m, TokenPooling))
    found: list[Any] = []
    run = layer._pool
    layer._pool = lambda *args: found.append(args) or run(*args)  # type: ignore[method-assign, func-returns-value]
    pooled(images)
    return partial(run, *found[0])


if __name__ == "__main__":
    main()
