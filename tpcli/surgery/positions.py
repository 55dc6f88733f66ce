"""Where a pooled token is: each stands at the patch of its medoid.

Rotary embeddings and relative position biases belong to patches of the grid. A pooled token takes
those of one patch, its `origin`; docs/coverage.md has the measurement behind that choice.
"""

from __future__ import annotations

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from tpcli.pooling import Clusters
from tpcli.pooling.clusters import cluster_sums


def patch_positions(tokens: Tensor) -> Tensor:
    """Tokens that nothing has happened to yet stand where they are: (B, N, ...) -> (B, N)."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])


def follow_medoids(origin: Tensor, clusters: Clusters, medoids: Tensor) -> Tensor:
    """The origins of the clusters' medoids: (B, N), (B, N) bool -> (B, K)."""
    return cluster_sums(origin * medoids, clusters.index, clusters.lead.shape[1])


def rotations_at(rope: Tensor, origin: Tensor) -> Tensor:
    """Rotations of tokens that stand at `origin` (B, N), from those of all patches.

    rope: sines and cosines as timm hands them to a block: (N_0, 2D); (H, N_0, 2D) where each head
    has its own; or (B, 1 or H, N_0, 2D) after patch dropout. Returns (B, 1 or H, N, 2D).
    """
    if rope.ndim == 2:
        return rope[origin].unsqueeze(1)
    if rope.ndim == 3:
        return rope[:, origin].transpose(0, 1)
    index = origin[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[3])
    return rope.gather(2, index)


def rotate(x: Tensor, rope: Tensor | None, prefix_tokens: int, half: bool) -> Tensor:
    """Rotate queries or keys (B, H, P + N, D) as timm's attention does: prefix tokens are not."""
    if rope is None:
        return x
    patches = apply_rot_embed_cat(x[:, :, prefix_tokens:], rope, half=half)
    return torch.cat([x[:, :, :prefix_tokens], patches], dim=2)
