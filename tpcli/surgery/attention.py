"""What a block's attention says of its patch tokens."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tpcli.config.options import PoolingOptions
from tpcli.errors import UserError

from .families import FAMILIES
from .geometry import blocks_of
from .positions import rotate


class AttentionInputs(NamedTuple):
    """What a block's attention works with beside its tokens, to compute its scores again.

    scale: factor of the logits. mask: added to them, or None. rope: rotations of its patch tokens,
    or None. rotate_half: their layout. queries, keys: (B, H, P + N, D), before their rotation;
    None where nobody asked for them.
    """

    scale: float
    mask: Tensor | None
    rope: Tensor | None = None
    rotate_half: bool = False
    queries: Tensor | None = None
    keys: Tensor | None = None


def patch_scores(
    inputs: AttentionInputs,
    options: PoolingOptions,
    *,
    prefix: int,
    class_token: bool,
) -> dict[str, Tensor]:
    """What attention says of each patch token, by the name of the option's value: (B, N) each.

    Only the rows of the attention matrix that the options ask for are computed.
    """
    scale, mask, rope, rotate_half, queries, keys = inputs
    assert queries is not None
    assert keys is not None
    queries = rotate(queries.detach(), rope, prefix, rotate_half)
    keys = rotate(keys.detach(), rope, prefix, rotate_half)
    kind = options.weights
    if kind == "attention":
        kind = "class" if class_token else "significance"
    scores = {}
    if "significance" in (kind, options.reduce):
        attention = attention_probabilities(queries, keys, scale, mask)
        scores["significance"] = attention.sum(2).mean(1)[:, prefix:]
    if kind == "class":
        mask = None if mask is None else mask[:, :, :1]
        attention = attention_probabilities(queries[:, :, :1], keys, scale, mask)
        scores["class"] = attention[:, :, 0].mean(1)[:, prefix:]
    if options.weights == "attention":
        scores["attention"] = scores[kind]
    return scores


def attention_probabilities(
    queries: Tensor, keys: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    """softmax(Q K^T scale + mask), float32: (B, H, M, D), (B, H or fewer, N, D) -> (B, H, M, N)."""
    if keys.shape[1] != queries.shape[1]:
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    logits = (queries.float() * scale) @ keys.float().transpose(-2, -1)
    return (logits if mask is None else logits + mask.float()).softmax(dim=-1)


def check_shows_attention(model: nn.Module) -> None:
    """Raise where the queries and keys of a block can't be seen.

    Raises:
        UserError: names the class and says what to use instead.
    """
    for block in blocks_of(model):
        if not hasattr(FAMILIES[type(block)].attention(block), "q_norm"):
            raise UserError(
                f"{type(model).__name__}'s attention doesn't show its queries and keys; use "
                "`weights=size` or uniform, `metric=tokens` or normalized, `reduce=mean` or medoid."
            )


def significance_scores(model: nn.Module, images: Tensor) -> Tensor:
    """Attention that each patch token receives in each block, summed over queries and averaged over
    heads (PoWER-BERT): (L, B, N). The mean over all tokens, prefix included, is 1.

    images: (B, 3, H, W). The model is not pooled.

    Raises:
        UserError: its attention doesn't show queries and keys.
    """
    check_shows_attention(model)
    prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    scores: list[Tensor] = []
    hooks = [_Hooks(block, scores) for block in blocks_of(model)]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([score[:, prefix:] for score in scores])


class _Hooks:
    """Hooks on one block, which append the scores of its tokens, (B, P + N), to `scores`.

    They do nothing where another thread runs the block.
    """

    def __init__(self, block: nn.Module, scores: list[Tensor]) -> None:
        self.thread = threading.get_ident()
        self.family = FAMILIES[type(block)]
        self.scores = scores
        attention: Any = self.family.attention(block)
        self.attention = attention
        self.given: Mapping[str, Any] = {}
        self.queries: Tensor | None = None
        self.hooks: list[RemovableHandle] = [
            block.register_forward_pre_hook(self.take_given, with_kwargs=True),
            attention.q_norm.register_forward_hook(self.take_queries),
            attention.k_norm.register_forward_hook(self.take_keys),
        ]

    def take_given(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == self.thread:
            self.given = kwargs

    def take_queries(self, norm: nn.Module, args: Any, output: Tensor) -> None:
        if threading.get_ident() == self.thread:
            self.queries = self.prepared(output)

    def take_keys(self, norm: nn.Module, args: Any, output: Tensor) -> None:
        if threading.get_ident() != self.thread:
            return
        assert self.queries is not None
        where = self.family.bias
        bias = None if where is None else where.total(self.attention, self.given)
        probabilities = attention_probabilities(
            self.queries, self.prepared(output), float(self.attention.scale), bias
        )
        self.scores.append(probabilities.sum(2).mean(1))
        self.given, self.queries = {}, None

    def prepared(self, output: Tensor) -> Tensor:
        """Queries or keys as the attention takes them: (B, H, P + N, D), rotated."""
        rope = self.given.get("rope")
        x = self.family.laid_out(output)
        assert x is not None
        if rope is None:
            return x
        return rotate(x, rope, self.attention.num_prefix_tokens, self.attention.rotate_half)

    def remove(self) -> None:
        """Leave the block as it was."""
        for hook in self.hooks:
            hook.remove()


ALIGNED = 8
"""Channels come in multiples of it, as attention's kernels want them."""

_attention = F.scaled_dot_product_attention


class KeyBias(Tensor):
    """An additive mask (B, 1, 1, N) that torch's attention takes as a channel.

    `F.scaled_dot_product_attention` asks the class of its mask, as for
    `torch.nn.attention.bias.CausalBias`; all other functions see a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is _attention:
            return attend(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + mask) V without the mask: (B, H, N, D) each, mask (B, 1, 1, N)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch._C.DisableTorchFunctionSubclass():
        bias = attn_mask[:, :, 0, :, None]  # (B, 1, N, 1)
        channel = (bias / scale).to(key.dtype).expand(-1, key.shape[1], -1, -1)
        ones = query.new_ones(1).expand(*query.shape[:-1], 1)
        out = _attention(
            _widened(query, ones),
            _widened(key, channel),
            _widened(value),
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=enable_gqa,
        )
        return out[..., : value.shape[-1]]


def _widened(x: Tensor, *channels: Tensor) -> Tensor:
    """x, the channels and zeros: as wide as the next multiple of `ALIGNED` above x's width."""
    width = x.shape[-1] + 1
    zeros = width + -width % ALIGNED - x.shape[-1] - len(channels)
    return F.pad(torch.cat([x, *channels], -1), (0, zeros))
