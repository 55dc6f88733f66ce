"""Which position should a pooled token take in a model with rotary embeddings?

    python benchmarks/rope_position.py

Trains two small RoPE ViTs (axial and mixed) on scikit-learn's digits, pools them, and measures how
far the logits move from those of the unpooled model, and what becomes of the accuracy, for each
way to place a pooled token:

- mean rotation: the size-weighted mean of the rotations of its patches (what tpcli does)
- mean position: the rotation at the size-weighted mean position of its patches
- medoid: the rotation at the patch of the cluster's medoid
- first member: the rotation at the first of its patches in reading order

About 4 minutes on one core; the trained weights are kept in the folder given with --weights.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_demo import CONFIG

import tpcli
from tpcli.demo import IMAGE_SIZE, Digits
from tpcli.pooling import Assignment, Clusters, Method, get_method
from tpcli.pooling.clusters import medoids_near_mean
from tpcli.surgery import TokenPooling, layer, positions
from tpcli.surgery import layer as forward

ARCHITECTURE = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 10,
}
MODELS = {"axial": "vit_small_patch16_rope_224", "mixed": "vit_small_patch16_rope_mixed_224"}
KEEP = (0.8, 0.65, 0.5)
METHODS = ("k-medoids", "ward")


def train(name: str, epochs: int) -> nn.Module:
    """A small RoPE ViT, trained from scratch on the digits."""
    torch.manual_seed(0)
    model = timm.create_model(name, **ARCHITECTURE)
    transform = create_transform(
        **CONFIG, is_training=True, scale=(0.6, 1.0), ratio=(0.8, 1.25), hflip=0.0, re_prob=0.25
    )
    loader = DataLoader(Digits("train", transform), batch_size=100, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * len(loader))
    for _ in range(epochs):
        for images, targets in loader:
            loss = F.cross_entropy(model(images), targets, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.step()
    return model.eval()


def validation() -> tuple[Tensor, Tensor]:
    """All validation images (797, 3, 32, 32) and their classes."""
    data = Digits("validation", create_transform(**CONFIG))
    images, targets = zip(*(data[i] for i in range(len(data))), strict=True)
    return torch.stack(images), torch.tensor(targets)


def shares(source: Tensor, sizes: Tensor) -> Tensor:
    """The share of each patch in each token: (B, N_0), (B, N) -> (B, N, N_0)."""
    one_hot = F.one_hot(source, sizes.shape[1]).transpose(1, 2).float()
    return one_hot / sizes.unsqueeze(-1)


def at_mean_position(rope: Tensor, source: Tensor, sizes: Tensor) -> Tensor:
    """The rotation at the mean position of each token's patches.

    Angles are linear in the position, so the angle at the mean position is the mean of the
    angles: those of the patches follow from the rotations of two neighbours of patch 0.
    """
    tables = rope if rope.ndim == 3 else rope.unsqueeze(0)  # (H, N_0, 2D)
    width = round(tables.shape[1] ** 0.5)
    sin, cos = tables.chunk(2, -1)
    angles = torch.atan2(sin, cos)  # of patch 0, its right and its lower neighbour: all within pi
    origin, right, down = angles[:, 0], angles[:, 1], angles[:, width]
    position = torch.arange(tables.shape[1])
    weights = shares(source, sizes)
    row, column = weights @ (position // width).float(), weights @ (position % width).float()
    mean = (
        origin[None, :, None]
        + row[:, None, :, None] * (down - origin)[None, :, None]
        + column[:, None, :, None] * (right - origin)[None, :, None]
    )
    return torch.cat([mean.sin(), mean.cos()], dim=-1)


def at(patches: Tensor, rope: Tensor) -> Tensor:
    """The rotations of single patches: (B, N) -> (B, 1 or H, N, 2D)."""
    tables = rope if rope.ndim == 3 else rope.unsqueeze(0)
    return tables[:, patches].transpose(0, 1)


def at_first_member(rope: Tensor, source: Tensor, sizes: Tensor) -> Tensor:
    return at(shares(source, sizes).argmax(-1), rope)


class Medoids:
    """Follows the patch of each cluster's medoid through the blocks of one forward."""

    def __init__(self) -> None:
        self.last = torch.empty(0)
        self.origin = torch.empty(0)

    def watch(self, method: Method) -> Method:
        """That method; notes its medoids, or the members nearest to the means."""

        def assign(z: Tensor, k: int, **options: Any) -> Assignment:
            labels, medoids, _ = method.assign(z, k, **options)
            if medoids is None:
                clusters = Clusters.from_labels(labels, k)
                medoids = medoids_near_mean(z, clusters, torch.ones(z.shape[:2]))
            self.last = medoids
            return Assignment(labels, medoids)

        return replace(method, assign=assign)

    def follow(self, source: Tensor | None, clusters: Clusters, kept: Tensor | None) -> Tensor:
        """As `positions.follow`, and note where the medoids are."""
        patches = torch.arange(self.last.shape[1]).expand_as(self.last)
        origin = patches if source is None else self.origin
        self.origin = clusters.sums(origin * self.last)
        return positions.follow(source, clusters, kept)

    def rotations(self, rope: Tensor, source: Tensor, sizes: Tensor) -> Tensor:
        """The rotation at the patch of each medoid."""
        return at(self.origin, rope)


PLACEMENTS = ("mean rotation", "mean position", "medoid", "first member")


def logits(model: nn.Module, images: Tensor, placement: str) -> Tensor:
    """Logits (B, classes) of the pooled model with pooled tokens placed that way."""
    medoids = Medoids()
    rotations = {
        "mean rotation": positions.mean_rotations,
        "mean position": at_mean_position,
        "medoid": medoids.rotations,
        "first member": at_first_member,
    }[placement]
    for module in model.modules():
        if isinstance(module, TokenPooling):
            module.method = medoids.watch(get_method(module.options.method))
    with (
        torch.inference_mode(),
        patch.object(layer, "follow", medoids.follow),
        patch.object(forward, "mean_rotations", rotations),
    ):
        return torch.cat([model(part) for part in images.split(100)])


def measure(name: str, model: nn.Module, images: Tensor, targets: Tensor) -> None:
    """Print one table: rows are placements, columns are shares of tokens kept."""
    tpcli.unpool(model)
    with torch.inference_mode():
        plain = torch.cat([model(part) for part in images.split(100)])
    top1 = (plain.argmax(1) == targets).float().mean().item() * 100
    print(f"\n{name}: unpooled top-1 {top1:.2f}, logits of norm {plain.norm(dim=1).mean():.2f}")
    print("| method | keep per block (2, 3, 4) | placement | logit error | top-1 |")
    print("| --- | --- | --- | ---: | ---: |")
    for method in METHODS:
        for keep in KEEP:
            tpcli.pool(model, f"keep:{keep}@1,2,3", method)
            for label in PLACEMENTS:
                out = logits(model, images, label)
                error = ((out - plain).norm(dim=1) / plain.norm(dim=1)).mean().item()
                accuracy = (out.argmax(1) == targets).float().mean().item() * 100
                print(f"| {method} | {keep} | {label} | {error:.4f} | {accuracy:.2f} |", flush=True)


def main() -> None:
    """Train (or load), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--weights", type=Path, help="folder to keep the trained weights in")
    arguments = parser.parse_args()
    images, targets = validation()
    for kind, name in MODELS.items():
        file = arguments.weights / f"{kind}.pt" if arguments.weights else None
        model = timm.create_model(name, **ARCHITECTURE).eval()
        if file and file.is_file():
            model.load_state_dict(torch.load(file, weights_only=True))
        else:
            model = train(name, arguments.epochs)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), file)
        measure(f"{kind} RoPE ({name}, trained)", model, images, targets)
    torch.manual_seed(1)
    for kind, name in MODELS.items():
        model = timm.create_model(name, **ARCHITECTURE).eval()
        for parameter_name, parameter in model.named_parameters():
            if "gamma" in parameter_name:
                nn.init.ones_(parameter)
        measure(f"{kind} RoPE ({name}, random weights)", model, images, targets)


if __name__ == "__main__":
    main()
