"""How much longer dense features of four blocks take than a plain forward, pooled and not.

    OMP_NUM_THREADS=1 python benchmarks/dense.py

DeiT-S with random weights, timed in turn in one process, by processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time

import timm
import torch

import tpcli

BLOCKS = [2, 5, 8, 11]


def main() -> None:
    """Measure and print ratios, the medians over rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schedule", default="flops:0.6")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    base, pooled = (timm.create_model("deit_small_patch16_224").eval() for _ in range(2))
    pooled.load_state_dict(base.state_dict())
    tpcli.pool(pooled, arguments.schedule)
    images = torch.randn(arguments.batch_size, 3, 224, 224)
    runs = {
        "forward": lambda: pooled(images),
        "dense": lambda: pooled.forward_intermediates(images, BLOCKS),
        "unpooled dense": lambda: base.forward_intermediates(images, BLOCKS),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(arguments.rounds + 1):  # the first warms up
            for name, run in runs.items():
                began = time.process_time()
                run()
                times[name].append(time.process_time() - began)
    for other in ("forward", "unpooled dense"):
        pairs = zip(times["dense"][1:], times[other][1:], strict=True)
        print(f"dense / {other}: {statistics.median(a / b for a, b in pairs):.3f}")


if __name__ == "__main__":
    main()
