"""Where pooled tokens are: each is at all the patches that it stands for, on average.

Rotary embeddings and relative position biases belong to the patches of the grid. A pooled token
takes the mean of those of its patches, so that attention logits are, to first order, the mean of
the logits of the members. docs/coverage.md has the measurement behind this choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from tpcli.pooling import Clusters
from tpcli.pooling.clusters import add_rows

from .patching import call_original, override, restore
from .state import THREAD, Attending


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
    sums = add_rows(sums, (source + offset).flatten(), flat, b)
    return sums.view(b, n + 1, -1)[:, :n] / sizes.unsqueeze(-1)


def rotate(x: Tensor, rope: Tensor | None, prefix_tokens: int, rotate_half: bool) -> Tensor:
    """Rotate queries or keys (B, H, P + N, D) as timm's attention does: prefix tokens are not."""
    if rope is None:
        return x
    patches = apply_rot_embed_cat(x[:, :, prefix_tokens:], rope, half=rotate_half)
    return torch.cat([x[:, :, :prefix_tokens], patches], dim=2)


@dataclass(frozen=True)
class PositionBias:
    """Where a family's attention takes its bias from.

    shared: keyword under which the model hands one bias to all blocks, or None as its value.
    own: the module and method that make a bias for one attention, or None where it has none.
    """

    shared: str
    own: Callable[[Any], tuple[nn.Module, str] | None]

    def attach(self, attention: nn.Module) -> None:
        """Stand between the attention and its own bias while its block is pooled."""
        own = self.own(attention)
        if own is not None:
            owner, name = own
            override(owner, name, own_bias, name)

    def detach(self, attention: nn.Module) -> None:
        """Give the attention its own method back."""
        own = self.own(attention)
        if own is not None:
            restore(*own)

    def prepare(self, attention: nn.Module, kwargs: dict[str, Any], attending: Attending) -> None:
        """Pool the shared bias in a block's `kwargs`; the mask goes where there is a bias."""
        shared = kwargs.get(self.shared)
        if self.own(attention) is not None:
            attending = attending._replace(mask=None)  # added once, to the attention's own
        if shared is not None:
            shared = pooled_bias(shared, attending)
        kwargs[self.shared] = attending.mask if shared is None else shared

    def total(self, attention: nn.Module, kwargs: Mapping[str, Any]) -> Tensor | None:
        """All that is added to the attention's logits."""
        shared: Tensor | None = kwargs.get(self.shared)
        own = self.own(attention)
        if own is None:
            return shared
        owner, name = own
        bias: Tensor = getattr(owner, name)()
        return bias if shared is None else bias + shared


def own_bias(owner: nn.Module, name: str) -> Tensor:
    """The bias that `owner` makes itself, pooled for the block that runs, with the mask added."""
    bias: Tensor = call_original(owner, name)
    return bias if THREAD.block is None else pooled_bias(bias, THREAD.block.attending)


def pooled_bias(bias: Tensor, attending: Attending) -> Tensor:
    """Mean over the patches of the query and of the key, plus the mask.

    bias: (1, H, P + N_0, P + N_0), or without the first 1. Returns (B, H, P + N, P + N), or `bias`
    where nothing is pooled yet.
    """
    source, sizes, mask, prefix = attending
    if source is None or sizes is None:
        return bias
    heads = bias.reshape(bias.shape[-3:])
    own = torch.arange(prefix, device=source.device).expand(source.shape[0], -1)
    source = torch.cat([own, source + prefix], dim=1)
    sizes = torch.cat([torch.ones_like(own, dtype=sizes.dtype), sizes], dim=1)
    rows = mean_rows(heads.transpose(0, 1).flatten(1), source, sizes)  # (B, N, H * N_0)
    rows = rows.unflatten(-1, (heads.shape[0], -1)).permute(0, 3, 1, 2)  # (B, N_0, N, H)
    both = mean_rows(rows.flatten(2), source, sizes)  # (B, N, N * H), keys first
    pooled: Tensor = both.unflatten(-1, (-1, heads.shape[0])).permute(0, 3, 2, 1).to(bias.dtype)
    return pooled if mask is None else pooled + mask.to(bias.dtype)
