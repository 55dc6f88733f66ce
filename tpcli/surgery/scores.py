"""Significance scores of every block of a model that is not pooled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .families import FAMILIES
from .layer import attention_probabilities


def significance_scores(model: nn.Module, images: Tensor) -> Tensor:
    """Attention that each patch token receives in each block, summed over queries and averaged over
    heads (PoWER-BERT, eq. 2): (L, B, N). The mean over all tokens, prefix included, is 1.

    images: (B, 3, H, W). The model is not pooled.
    """
    prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
    queries: list[Tensor] = []
    scores: list[Tensor] = []
    hooks = []
    for block in model.blocks:  # type: ignore[union-attr]
        family = FAMILIES[type(block)]
        attention: Any = family.attention(block)

        def heads_first(tensor: Tensor, first: bool = family.heads_first) -> Tensor:
            return tensor if first else tensor.transpose(1, 2)

        def take_queries(m: nn.Module, a: Any, output: Tensor, order: Any = heads_first) -> None:
            queries.append(order(output))

        def take_keys(
            m: nn.Module, a: Any, output: Tensor, order: Any = heads_first, owner: Any = attention
        ) -> None:
            probabilities = attention_probabilities(
                queries.pop(), order(output), float(owner.scale), None
            )
            scores.append(probabilities.sum(2).mean(1)[:, prefix:])

        hooks.append(attention.q_norm.register_forward_hook(take_queries))
        hooks.append(attention.k_norm.register_forward_hook(take_keys))
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(scores)
