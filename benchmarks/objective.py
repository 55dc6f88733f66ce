"""How near the optimum each clustering comes, on real tokens; prints Markdown.

    python benchmarks/objective.py [--model MODEL] [--data DATA] [--images 32]

K-Medoids' objective is given relative to FasterPAM (package kmedoids), K-Means' relative to the
best of ten restarts of scikit-learn's KMeans.
"""

from __future__ import annotations

import argparse
import warnings

import kmedoids
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from tpcli import data
from tpcli.models.load import load
from tpcli.pooling import Clusters, get_method, reconstruction_loss
from tpcli.pooling.centroids import alternate, start_medoids
from tpcli.pooling.distances import pairwise_squared_distances


def block_tokens(model: nn.Module, images: Tensor, block: int) -> Tensor:
    """Layer-normalized patch tokens after `block`: (B, N, C)."""
    tokens = {}
    hook = model.blocks[block].register_forward_hook(lambda m, a, out: tokens.update(out=out))
    with torch.inference_mode():
        model(images)
    hook.remove()
    patches = tokens["out"][:, model.num_prefix_tokens :].clone()
    return F.layer_norm(patches, patches.shape[-1:])


def medoid_loss(z: Tensor, k: int, start: str, steps: int) -> float:
    """Mean over images of the sum of squared distances to the medoids; top-K of random scores."""
    distances = pairwise_squared_distances(z)
    ones = torch.ones(z.shape[:2])
    scores = torch.rand(z.shape[:2], generator=torch.Generator().manual_seed(0))
    weights = scores if start == "top-k" else ones
    medoids = start_medoids(start, z, k, weights=weights)
    found = alternate(distances, medoids, ones, steps)
    assert found.medoids is not None
    to_medoids = distances.masked_fill(~found.medoids.unsqueeze(1), torch.inf)
    return float(to_medoids.amin(-1).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    loaded = load(arguments.model)
    images = data.create(arguments.data, loaded.data_config, limit=arguments.images)
    batch = images.normalize(next(data.batches(images, arguments.images))[0])
    depth = len(loaded.model.blocks)
    print(f"{loaded.name}, {arguments.images} images of {arguments.data}\n")
    chosen = [depth // 6, depth * 2 // 3]
    tokens = {block: block_tokens(loaded.model.eval(), batch, block) for block in chosen}
    n = tokens[chosen[0]].shape[1]
    cuts = [n - n // 8, n // 2, n // 5]
    starts = ("top-k", "even", "matching")

    print("K-Medoids relative to FasterPAM: start +0 / +3 steps (top-K of random scores)\n")
    print("| block, K | " + " | ".join(starts) + " |\n| --- |" + " --- |" * len(starts))
    for block, z in tokens.items():
        distances = pairwise_squared_distances(z)
        for k in cuts:
            pam = np.mean([
                kmedoids.fasterpam(d.numpy().astype(np.float64), k, random_state=0).loss
                for d in distances
            ])  # fmt: skip
            cells = [
                " / ".join(f"{medoid_loss(z, k, start, steps) / pam:.2f}" for steps in (0, 3))
                for start in starts
            ]
            print(f"| {block}, {k} | " + " | ".join(cells) + " |")

    methods = [("ward", 1), ("ward", 2), ("ward", 4), ("k-means", 3), ("k-medoids", 3)]
    print("\nK-Means' objective relative to the best of 10 KMeans restarts (matching start)\n")
    print("| block, K | " + " | ".join(f"{m}, {i}" for m, i in methods) + " |")
    print("| --- |" + " --- |" * len(methods))
    for block, z in tokens.items():
        ones = torch.ones(z.shape[:2])
        for k in cuts:
            best = np.mean([
                KMeans(k, n_init=10, random_state=0).fit(sample.numpy()).inertia_ for sample in z
            ])  # fmt: skip
            cells = []
            for name, iterations in methods:
                found = get_method(name)(
                    z, k, weights=ones, sizes=ones, start="matching", iterations=iterations
                )
                clusters = Clusters.from_labels(found.labels, k)
                cells.append(f"{float(reconstruction_loss(z, clusters, ones).mean()) / best:.3f}")
            print(f"| {block}, {k} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
