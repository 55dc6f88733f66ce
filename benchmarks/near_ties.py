"""How often rounding changes the clusters of `ward`: torch's operators on tokens of DeiT-S.

    python benchmarks/near_ties.py --images 24

Random weights, half of the images noise, half smooth, `r:13`: 12 poolings of each. Each is made
again with channels in another order, in float64, and with the last bit of values changed. On a GPU
`--device cuda` compares with the CPU besides. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli import pool
from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.ward import candidate_count, merges_per_round, sketch_saves, ward_by_operators
from tpcli.surgery import TokenPooling


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    groups = torch.arange(384).view(-1, constants.SKETCH_DIM)
    order = groups.index_select(1, torch.randperm(constants.SKETCH_DIM)).flatten()
    variants: dict[str, Callable[[Tensor], Tensor]] = {
        "channels in another order": lambda z: z[..., order],
        "float64": Tensor.double,
        "the last bit of each value": lambda z: z * (1 + 6e-8 * torch.randn_like(z)),
    }
    if arguments.device != "cpu":
        variants[arguments.device] = lambda z: z.to(arguments.device)
    changed, total = dict.fromkeys(variants, 0), 0
    with torch.inference_mode():
        for z, k, weights in poolings(arguments.images):
            expected = same_cluster(z, k, weights)
            total += len(z)
            for name, change in variants.items():
                differs = same_cluster(change(z), k, weights) != expected
                changed[name] += int(differs.flatten(1).any(1).sum())
    print(f"| | poolings of {total} that change |\n| --- | ---: |")
    for name, count in changed.items():
        print(f"| {name} | {count} |")


def poolings(images: int) -> list[tuple[Tensor, int, Tensor]]:
    """What each pooling layer is given: metric, K and weights."""
    model = pool(timm.create_model("deit_small_patch16_224").eval(), "r:13", "ward")
    given: list[tuple[Tensor, int, Tensor]] = []

    def recorded(layer: TokenPooling, assign: Callable[..., Any]) -> Callable[..., Any]:
        def call(metric: Tensor, k: int, weights: Tensor, sizes: Tensor) -> Any:
            given.append((metric.clone(), k, weights.clone()))
            return assign(metric, k, weights, sizes)

        return call

    for layer in model.modules():
        if isinstance(layer, TokenPooling):
            layer._assign = recorded(layer, layer._assign)  # type: ignore[method-assign]
    noise = torch.randn(images, 3, 224, 224)
    coarse = torch.randn(images // 2, 3, 28, 28)
    noise[: images // 2] = (
        F.interpolate(coarse, size=224, mode="bilinear") + 0.2 * noise[: images // 2]
    )
    model(noise)
    return given


def same_cluster(z: Tensor, k: int, weights: Tensor) -> Tensor:
    """Whether two tokens are in one cluster: (B, N, N), on the CPU."""
    n = z.shape[1]
    count = candidate_count(n, k) if sketch_saves(n, k, z.shape[2]) else n
    labels = ward_by_operators(z, weights.to(z.device), count, merges_per_round(n, k, 0), True)
    return (labels.unsqueeze(1) == labels.unsqueeze(2)).cpu()


if __name__ == "__main__":
    main()
