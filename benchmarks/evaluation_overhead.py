"""How much longer `tpcli eval` takes than the bare forward passes of the same batches.

    python benchmarks/evaluation_overhead.py --model MODEL --data DATA --limit 2000

Both are timed in turn in one process: the evaluation from opening the files to the result, decoding
included, and the model alone on batches that are in memory.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from tpcli import data
from tpcli.evaluation.run import evaluate
from tpcli.models.load import load


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    model = loaded.model.eval()
    images = data.create(arguments.data, loaded.data_config, limit=arguments.limit)
    decoded = [images.normalize(x) for x, _ in data.batches(images, 128)]
    ratios = []
    for _ in range(arguments.rounds):
        began = time.perf_counter()
        fresh = data.create(arguments.data, loaded.data_config, limit=arguments.limit)
        evaluate(model, fresh, device="cpu", workers=arguments.workers)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in decoded:
                model(batch)
        bare = time.perf_counter() - began
        ratios.append(whole / bare)
        print(f"evaluation {whole:.2f} s, bare forward {bare:.2f} s, ratio {ratios[-1]:.3f}")
    print(f"median ratio {np.median(ratios):.3f}, {sum(map(len, decoded))} images")


if __name__ == "__main__":
    main()
