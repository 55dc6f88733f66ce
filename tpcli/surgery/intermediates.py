"""`forward_intermediates` of a pooled model: timm's own loop over the blocks, with dense features.

Where they are asked for, the blocks are told by their input: the first that pools gets its tokens
with `Patches`, and from then on they travel as sizes do. Nothing is kept on the model, and where no
dense features are asked for, none of this runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tpcli.pooling.clusters import take

from .dense import Patches
from .geometry import POOLING_NAME
from .head import take_over_norm
from .layer import PooledTokens
from .patching import own_method


def forward_intermediates(
    model: nn.Module,
    x: Any,
    indices: int | Sequence[int] | None = None,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """timm's `forward_intermediates`, which says what the arguments are; one feature per patch.

    A patch has the token that stands for it, plus what set the patch apart from that token when
    they were merged. The final features are K tokens, those of `forward_features`.
    """
    own = own_method(model, "forward_intermediates")
    own = type(model).forward_intermediates if own is None else own.__func__  # type: ignore[attr-defined]
    if not any(hasattr(block, POOLING_NAME) for block in model.blocks):  # type: ignore[union-attr]
        return own(
            model, x, indices, return_prefix_tokens, norm, stop_early, output_fmt,
            intermediates_only, *args, **kwargs,
        )  # fmt: skip
    _, last = feature_take_indices(len(model.blocks), indices)  # type: ignore[arg-type]
    take_over_norm(model)
    reshape = output_fmt == "NCHW" and isinstance(x, Tensor)
    out = own(
        _Seen(model, last), x, indices, False, False, stop_early,
        "NLC" if reshape else output_fmt, intermediates_only, *args, **kwargs,
    )  # fmt: skip
    left = out["image_intermediates"] if isinstance(out, dict) else out
    left = left if intermediates_only or isinstance(out, dict) else left[1]
    both = [_dense(model, tokens, norm) for tokens in left]
    prefix, dense = [one for one, _ in both], [other for _, other in both]
    if reshape:
        stem: Any = getattr(model, "patch_embed", None) or model.embeds
        grid = stem.dynamic_feat_size(tuple(x.shape[-2:]))
        dense = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in dense]
    with_prefix = return_prefix_tokens and bool(model.num_prefix_tokens)
    if isinstance(out, dict):
        out["image_intermediates"] = dense
        return out | {"image_intermediates_prefix": prefix} if with_prefix else out
    features = list(zip(dense, prefix, strict=True)) if with_prefix else dense
    return features if intermediates_only else (out[0], features)


def _dense(model: Any, tokens: Tensor | PooledTokens, norm: bool) -> tuple[Tensor, Tensor]:
    """Prefix tokens, and one feature for each patch: (B, P, C), (B, N_0, C)."""
    patches = Patches()
    if isinstance(tokens, PooledTokens):
        patches = tokens.patches or patches
        tokens = tokens.x
    prefix, own = tokens.tensor_split([model.num_prefix_tokens], dim=1)
    if patches.source is not None and patches.offset is not None:
        own = take(own, patches.source) + patches.offset
        tokens = torch.cat([prefix, own], dim=1) if norm else tokens
    if norm:
        prefix, own = model.norm(tokens).tensor_split([model.num_prefix_tokens], dim=1)
    return prefix, own


class _Seen:
    """A pooled model as timm's loop sees it: no prefix tokens to split off, and blocks that follow
    what becomes of the patches, up to the `last` that is asked for."""

    num_prefix_tokens = 0

    def __init__(self, model: nn.Module, last: int) -> None:
        self._model = model
        blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
        pools = [hasattr(block, POOLING_NAME) for block in blocks]
        first = pools.index(True)
        if first <= last:
            blocks[first] = partial(_begin, blocks[first])
        if first <= last < len(blocks) - 1 and pools[last + 1]:
            blocks[last + 1] = partial(_end, blocks[last + 1])
        self.blocks = blocks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _begin(block: nn.Module, x: Tensor, **kwargs: Any) -> Any:
    return block(PooledTokens(x, None, None, Patches()), **kwargs)


def _end(block: nn.Module, x: PooledTokens, **kwargs: Any) -> Any:
    return block(x._replace(patches=None), **kwargs)
