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
from tpcli.schedule import Schedule, Tokens
from tpcli.surgery import PoolingSpec, insert, unpool
from tpcli.surgery.geometry import patch_grid, patch_tokens

Floats = npt.NDArray[np.float64]

CALIBRATION = ((0.9,), (0.75, 1.0))
"""Keep rates, block after block and over again, of the schedules that the estimate starts from."""


class CostModel:
    """FLOPs of any schedule for one model and one set of pooling options, as shares of the base.

    A block's FLOPs are a polynomial of its tokens in and out: attention and distances go with the
    square, the rest with the number. It is fitted to all of fvcore's counts so far, after which a
    schedule costs microseconds instead of a trace. `exact` is the count itself.

    options: complete ones (`surgery.with_place`). last_free: leave one patch token for the last
    block's MLP. The model is left alone; its weights are shared, not copied.
    """

    def __init__(
        self, model: nn.Module, options: PoolingOptions, *, last_free: bool = False
    ) -> None:
        weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._model = unpool(copy.deepcopy(model, weights)).eval()
        self._method = get_method(options.method)
        self._grid = patch_grid(model)
        self.options = options
        self.last_free = last_free
        self.patch_tokens = patch_tokens(model)
        self.depth = len(self._model.blocks)  # type: ignore[arg-type]
        base = count_flops(self._model)
        self.base_flops = base.total
        self._rest = base.total - sum(block.flops for block in base.blocks)
        self._exact: dict[Tokens, int] = {}
        self._samples: list[tuple[int, int, int]] = []
        self._fitted: tuple[Floats, Floats] | None = None
        self._remember((self.patch_tokens,) * self.depth, base)

    def followed(self, wanted: Iterable[int]) -> Tokens:
        """The schedule nearest above `wanted` tokens per block that the method can follow.

        What a block can't remove is left to the next ones.
        """
        tokens: list[int] = []
        counts = list(wanted)
        if self.last_free:
            counts[-1] = 1
        for count in counts:
            before = tokens[-1] if tokens else self.patch_tokens
            tokens.append(self._method.allowed(before, count, self._grid))
        return tuple(tokens)

    def estimate(self, tokens: Sequence[int]) -> float:
        """FLOPs as a share of the base's, estimated."""
        return float(self.estimates([tokens])[0])

    def estimates(self, schedules: Sequence[Sequence[int]]) -> Floats:
        """`estimate` of each of S schedules: (S,)."""
        if self._fitted is None:
            self._fitted = self._fit()
        plain, pooling = self._fitted
        after = np.asarray(schedules, dtype=np.float64) / self.patch_tokens
        before = np.concatenate([np.ones_like(after[:, :1]), after[:, :-1]], axis=1)
        features = _features(before, after)  # (S, blocks, features)
        blocks = np.where(after < before, features @ pooling, features @ plain)
        shares: Floats = (self._rest + blocks.sum(1)) / self.base_flops
        return shares

    def exact(self, tokens: Sequence[int]) -> float:
        """FLOPs as a share of the base's, counted on the pooled model."""
        key = tuple(tokens)
        if key not in self._exact:
            insert(self._model, PoolingSpec(Schedule(key, self.patch_tokens), self.options))
            self._remember(key, count_flops(self._model))
            unpool(self._model)
        return self._exact[key] / self.base_flops

    def _remember(self, tokens: Tokens, count: FlopCount) -> None:
        self._exact[tokens] = count.total
        self._samples += [
            (block.tokens_in, block.tokens_out, block.flops) for block in count.blocks
        ]
        self._fitted = None

    def _fit(self) -> tuple[Floats, Floats]:
        """Coefficients of a block that does not pool, and of one that does."""
        if not any(n > k for n, k, _ in self._samples):
            for rates in CALIBRATION:
                left, wanted = self.patch_tokens, []
                for block in range(self.depth):
                    left = max(1, round(left * rates[block % len(rates)]))
                    wanted.append(left)
                self.exact(self.followed(wanted))
        samples = np.array(sorted(set(self._samples)), dtype=np.float64)
        pools = samples[:, 0] > samples[:, 1]
        return _least_squares(samples[~pools], self.patch_tokens), _least_squares(
            samples[pools], self.patch_tokens
        )


def _features(before: Floats, after: Floats) -> Floats:
    """Of blocks with such shares of all tokens in and out: (...,) -> (..., 6)."""
    ones = np.ones_like(before)
    return np.stack([ones, before, after, before * before, before * after, after * after], axis=-1)


def _least_squares(samples: Floats, patch_tokens: int) -> Floats:
    """Coefficients with the smallest relative errors on (tokens in, tokens out, FLOPs) rows."""
    if not len(samples):
        return np.zeros(6)
    flops = samples[:, 2]
    features = _features(samples[:, 0] / patch_tokens, samples[:, 1] / patch_tokens)
    solution = np.linalg.lstsq(features / flops[:, None], np.ones(len(flops)))[0]
    return np.asarray(solution, dtype=np.float64)
