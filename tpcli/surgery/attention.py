"""What a block's attention says of its patch tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tpcli.options import PoolingOptions

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
