"""Relative position biases in pooled blocks: a pair of tokens takes the mean over their patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .overrides import override, restore
from .positions import mean_rows
from .running import THREAD, Attending


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
        bias = own_bias(*own)
        return bias if shared is None else bias + shared


def own_bias(owner: nn.Module, name: str) -> Tensor:
    """The bias that `owner` makes itself, pooled for the block that runs, with the mask added."""
    bias: Tensor = getattr(type(owner), name)(owner)
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
