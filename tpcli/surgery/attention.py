"""What a block's attention says of its patch tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tpcli.options import PoolingOptions

from .positions import rotate


class AttentionInputs(NamedTuple):
    """What a block's attention works with beside its tokens, to compute its scores again.

    scale: factor of the logits. mask: added to them, or None. rope: rotations of its patch tokens,
    or None. rotate_half: their layout.
    """

    scale: float
    mask: Tensor | None
    rope: Tensor | None = None
    rotate_half: bool = False


def patch_scores(
    queries: Tensor,
    keys: Tensor,
    inputs: AttentionInputs,
    options: PoolingOptions,
    *,
    prefix: int,
    class_token: bool,
) -> dict[str, Tensor]:
    """What attention says of each patch token, by the name of the option's value: (B, N) each.

    Only the rows of the attention matrix that the options ask for are computed.

    queries, keys: (B, H, P + N, D), before their rotation.
    """
    scale, mask, rope, half = inputs
    queries, keys = rotate(queries, rope, prefix, half), rotate(keys, rope, prefix, half)
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
