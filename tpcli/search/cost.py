"""What a schedule costs: a fast estimate per block, and fvcore's own count to settle it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from tpcli.flops import FlopCount, count_flops
from tpcli.options import PoolingOptions
from tpcli.pooling import get_method
from tpcli.schedule import Schedule
from tpcli.surgery import pool, unpool
from tpcli.surgery.head import last_pooling_is_free
from tpcli.surgery.insert import patch_grid, patch_tokens, resolve

Tokens = tuple[int, ...]

CALIBRATION = ((0.9,), (0.75, 1.0), (1.0, 0.55), (0.97, 0.85, 0.7))
"""Keep rates, block after block and over again, of the schedules that the estimate is fitted to."""


class CostModel:
    """FLOPs of any schedule for one model and one set of pooling options, as shares of the base.

    A block's FLOPs are a polynomial of its tokens in and out: attention and distances go with the
    square, the rest with the number. It is fitted to fvcore's counts of a few schedules, after
    which a schedule costs microseconds instead of a trace. `exact` is the count itself.
    """

    def __init__(self, model: nn.Module, options: PoolingOptions) -> None:
        self._model = unpool(copy.deepcopy(model)).eval()
        self._method = get_method(options.method)
        self._grid = patch_grid(model)
        self.patch_tokens = patch_tokens(model)
        self.depth = len(self._model.blocks)  # type: ignore[arg-type]
        whole = (self.patch_tokens,) * self.depth
        self._options = resolve(self._model, whole, options).options
        self._last_is_free = last_pooling_is_free(model, self._options.position)
        base = count_flops(self._model)
        self.base_flops = base.total
        self._rest = base.total - sum(block.flops for block in base.blocks)
        self._exact: dict[Tokens, int] = {whole: base.total}
        samples = [(block.tokens_in, block.tokens_out, block.flops) for block in base.blocks]
        for rates in CALIBRATION:
            left, wanted = self.patch_tokens, []
            for block in range(self.depth):
                left = max(1, round(left * rates[block % len(rates)]))
                wanted.append(left)
            blocks = self._count(self._possible(wanted)).blocks
            samples += [(block.tokens_in, block.tokens_out, block.flops) for block in blocks]
        self._plain = self._fit([s for s in samples if s[0] == s[1]])
        self._pooling = self._fit([s for s in samples if s[0] > s[1]])

    def allowed(self, before: int, wanted: int) -> int:
        """The smallest number of tokens from `wanted` up that the method can make of `before`."""
        return self._method.allowed(before, wanted, self._grid)

    def followed(self, wanted: Iterable[int]) -> Tokens:
        """The schedule nearest above `wanted` tokens per block that the method can follow.

        Where nobody reads the patch tokens that the last attention leaves, one of them is as good
        as all: the last MLP works for the class token alone, and no answer changes.
        """
        counts = list(wanted)
        if self._last_is_free:
            counts[-1] = 1
        return self._possible(counts)

    def _possible(self, wanted: Iterable[int]) -> Tokens:
        tokens: list[int] = []
        for count in wanted:
            tokens.append(self.allowed(tokens[-1] if tokens else self.patch_tokens, count))
        return tuple(tokens)

    def estimate(self, tokens: Sequence[int]) -> float:
        """FLOPs as a share of the base's, estimated."""
        total = float(self._rest)
        for n, k in zip((self.patch_tokens, *tokens), tokens, strict=False):
            total += float((self._pooling if k < n else self._plain) @ self._features(n, k))
        return total / self.base_flops

    def exact(self, tokens: Sequence[int]) -> float:
        """FLOPs as a share of the base's, counted on the pooled model."""
        key = tuple(tokens)
        if key not in self._exact:
            self._count(key)
        return self._exact[key] / self.base_flops

    def _count(self, tokens: Tokens) -> FlopCount:
        pool(self._model, Schedule(tokens, self.patch_tokens), self._options)
        count = count_flops(self._model)
        unpool(self._model)
        self._exact[tokens] = count.total
        return count

    def _features(self, n: int, k: int) -> npt.NDArray[np.float64]:
        a, b = n / self.patch_tokens, k / self.patch_tokens
        return np.array([1.0, a, b, a * a, a * b, b * b])

    def _fit(self, samples: list[tuple[int, int, int]]) -> npt.NDArray[np.float64]:
        if not samples:
            return np.zeros(6)
        flops = np.array([s[2] for s in samples], dtype=np.float64)
        features = np.stack([self._features(n, k) for n, k, _ in samples]) / flops[:, None]
        solution = np.linalg.lstsq(features, np.ones(len(flops)))[0]
        return np.asarray(solution, dtype=np.float64)
