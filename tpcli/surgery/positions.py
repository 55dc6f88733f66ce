"""Where pooled tokens are: each is at all the patches that it stands for, on average.

Rotary embeddings and relative position biases belong to the patches of the grid. A pooled token
takes the mean of those of its patches, so that attention logits are, to first order, the mean of
the logits of the members. docs/coverage.md has the measurement behind this choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from tpcli.pooling import Clusters


def follow(source: Tensor | None, clusters: Clusters, kept: Tensor | None = None) -> Tensor:
    """Which token stands for each patch after one more pooling: (B, N_0) or None -> (B, N_0).

    kept: (B, N) bool, False for tokens that were dropped; their patches go to token K, which is
    none.
    """
    k = clusters.lead.shape[1]
    index = clusters.labels() if kept is None else clusters.labels().masked_fill(~kept, k)
    if source is None:
        return index
    return F.pad(index, (0, 1), value=k).gather(1, source)


def mean_rotations(rope: Tensor, source: Tensor, sizes: Tensor) -> Tensor:
    """Rotations of pooled tokens: the means of those of the patches that they stand for.

    rope: sines and cosines as timm hands them to a block: (N_0, 2D); (H, N_0, 2D) where each head
    has its own; or (B, 1 or H, N_0, 2D) after patch dropout. source: (B, N_0) the token that stands
    for each patch. sizes: (B, N). Returns (B, 1 or H, N, 2D).
    """
    per_patch = rope.unsqueeze(0) if rope.ndim == 2 else rope  # (1 or H, N_0, 2D)
    rows = per_patch.transpose(-3, -2).flatten(-2)  # (N_0, H * 2D), with a batch if rope has one
    means = mean_rows(rows, source, sizes)
    by_head: Tensor = means.unflatten(-1, (per_patch.shape[-3], -1))
    return by_head.transpose(1, 2)


def mean_rows(rows: Tensor, source: Tensor, sizes: Tensor) -> Tensor:
    """The mean over the patches of each token: (N_0, M) or (B, N_0, M) -> (B, N, M)."""
    b, n = sizes.shape
    offset = torch.arange(b, device=source.device).unsqueeze(1) * (n + 1)  # one for dropped patches
    flat = rows.float().expand(b, -1, -1).flatten(0, 1)
    sums = flat.new_zeros(b * (n + 1), flat.shape[1])
    sums = sums.index_add(0, (source + offset).flatten(), flat)
    return sums.view(b, n + 1, -1)[:, :n] / sizes.unsqueeze(-1)


def rotate(x: Tensor, rope: Tensor | None, prefix_tokens: int, rotate_half: bool) -> Tensor:
    """Rotate queries or keys (B, H, P + N, D) as timm's attention does: prefix tokens are not."""
    if rope is None:
        return x
    patches = apply_rot_embed_cat(x[:, :, prefix_tokens:], rope, half=rotate_half)
    return torch.cat([x[:, :, :prefix_tokens], patches], dim=2)
