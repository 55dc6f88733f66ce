"""Significance scores of every block of a model that is not pooled."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tpcli.errors import UserError

from .attention import attention_probabilities
from .families import FAMILIES
from .positions import rotate


def check_shows_attention(model: nn.Module) -> None:
    """Raise where the queries and keys of a block can't be seen.

    Raises:
        UserError: names the class and says what to use instead.
    """
    for block in model.blocks:  # type: ignore[union-attr]
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
    with _watched(model, scores), torch.inference_mode():
        model(images)
    return torch.stack([score[:, prefix:] for score in scores])


@contextmanager
def _watched(model: nn.Module, scores: list[Tensor]) -> Iterator[None]:
    """Append the scores of each block's tokens, (B, P + N), to `scores` while in the body."""
    watchers = [_Watcher(block, scores) for block in model.blocks]  # type: ignore[union-attr]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.remove()


class _Watcher:
    """Hooks on one block: what it is called with, then its queries, then its keys.

    They look away where another thread runs the block.
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
