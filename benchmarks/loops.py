"""What each of the two C kernels brings: clustering (ward.c) and merging (clusters.c).

    python benchmarks/loops.py --seconds 60

A pooled model is timed against its base with both kernels, with the one for clustering alone
(merging by torch's operators) and with neither, one forward of each in turn, so that the ratios
hold on a machine whose speed drifts. Prints Markdown: median and quartiles of the speed-ups.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import timm
import torch
from torch import Tensor, nn

from tpcli import pool
from tpcli.pooling.backends import c as c_kernels

FORMS = {
    "both kernels": (),
    "clustering alone": ("merge_tokens",),
    "neither": ("merge_tokens", "ward_labels"),
}
"""Functions that are switched off in each form."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--schedule", default="flops:0.6")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each batch size")
    arguments = parser.parse_args()
    if c_kernels.kernels is None:
        parser.error(f"the C kernels were not built{c_kernels.not_built}")
    print(f"{arguments.model}, {arguments.schedule}, {torch.get_num_threads()} threads\n")
    print("| batch | " + " | ".join(FORMS) + " |")
    print("| ---: |" + " ---: |" * len(FORMS))
    base = timm.create_model(arguments.model).eval()
    pooled = pool(timm.create_model(arguments.model).eval(), arguments.schedule)
    for batch in arguments.batch_size:
        images = torch.randn(batch, *base.default_cfg["input_size"])
        found = speed_ups(base, pooled, images, arguments.seconds)
        cells = (
            f"{np.median(found[form]):.3f} ({np.quantile(found[form], 0.25):.3f} to "
            f"{np.quantile(found[form], 0.75):.3f})"
            for form in FORMS
        )
        print(f"| {batch} | " + " | ".join(cells) + " |")


def speed_ups(
    base: nn.Module, pooled: nn.Module, images: Tensor, seconds: float
) -> dict[str, list[float]]:
    """For each form the ratios of a base forward to the pooled one after it."""
    found: dict[str, list[float]] = {form: [] for form in FORMS}
    began = time.perf_counter()
    with torch.inference_mode():
        for call in (base, pooled):
            call(images)
        while len(found["neither"]) < 5 or time.perf_counter() - began < seconds:
            for form, idle in FORMS.items():
                plain = duration(base, images)
                with ExitStack() as stack:
                    for name in idle:
                        stack.enter_context(patch.object(c_kernels, name, lambda *_: None))
                    found[form].append(plain / duration(pooled, images))
    return found


def duration(call: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Seconds of one forward."""
    start = time.perf_counter()
    call(images)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
