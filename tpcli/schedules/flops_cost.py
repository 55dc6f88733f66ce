"""FLOPs of a schedule: a fast estimate by block, and the count of the pooled model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule, Tokens
from tpcli.flops import FlopCount, count_flops
from tpcli.pooling import get_method
from tpcli.surgery import PoolingSpec, insert, unpool
from tpcli.surgery.geometry import patch_grid, patch_tokens

Floats = npt.NDArray[np.float64]

CALIBRATION = (0.7, 1.0, 0.95)
"""Keep rates, block after block and over again, of the schedule that the estimate starts from."""


class FeasibleSchedules:
    """Schedules that a model can have under one set of pooling options.

    last_free: leave one patch token for the last block's MLP.
    """

    def __init__(
        self, model: nn.Module, options: PoolingOptions, *, last_free: bool = False
    ) -> None:
        self._method = get_method(options.method)
        self._grid = patch_grid(model)
        self.options = options
        self.last_free = last_free
        self.patch_tokens = patch_tokens(model)
        self.depth = len(model.blocks)  # type: ignore[arg-type]

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


class Cost(FeasibleSchedules, ABC):
    """Costs of these schedules, as shares of the unpooled model's."""

    def estimate(self, tokens: Sequence[int]) -> float:
        """The cost of one schedule, estimated."""
        return float(self.estimates([tokens])[0])

    @abstractmethod
    def estimates(self, schedules: Sequence[Sequence[int]]) -> Floats:
        """`estimate` of each of S schedules: (S,)."""

    @abstractmethod
    def exact(self, tokens: Sequence[int]) -> float:
        """The cost of one schedule, as exactly as it is known."""


class CostModel(Cost):
    """FLOPs of any schedule for one model and one set of pooling options, as shares of the base.

    A block's FLOPs, and those of its pooling, are polynomials of its tokens in and out. They are
    fitted to all of fvcore's counts so far, after which a schedule costs microseconds instead of a
    trace. `exact` is the count itself. The model is left alone; its weights are shared, not copied.
    """

    def __init__(
        self, model: nn.Module, options: PoolingOptions, *, last_free: bool = False
    ) -> None:
        super().__init__(model, options, last_free=last_free)
        self._model = sharing_weights(model)
        base = count_flops(self._model)
        self.base_flops = base.total
        self._rest = base.total - sum(block.flops for block in base.blocks)
        self._exact: dict[Tokens, int] = {}
        self._samples: set[tuple[int, int, int, int]] = set()
        self._fitted: tuple[Floats, Floats] | None = None
        self._remember((self.patch_tokens,) * self.depth, base)

    def estimates(self, schedules: Sequence[Sequence[int]]) -> Floats:
        """FLOPs of each of S schedules, estimated: (S,)."""
        if self._fitted is None:
            self._fitted = self._fit()
        blocks, pooling = self._fitted
        after = np.asarray(schedules, dtype=np.float64) / self.patch_tokens
        before = np.concatenate([np.ones_like(after[:, :1]), after[:, :-1]], axis=1)
        removed = before - after
        flops = _block_features(before, after) @ blocks
        flops += np.where(removed > 0, _pooling_features(before, removed) @ pooling, 0)
        shares: Floats = (self._rest + flops.sum(1)) / self.base_flops
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
        self._samples |= {
            (
                block.tokens_in,
                block.tokens_out,
                block.flops - block.pooling_flops,
                block.pooling_flops,
            )
            for block in count.blocks
        }
        self._fitted = None

    def _fit(self) -> tuple[Floats, Floats]:
        """Coefficients of the features of a block, and of those of its pooling."""
        left, wanted = float(self.patch_tokens), []
        for block in range(self.depth):
            left *= CALIBRATION[block % len(CALIBRATION)]
            wanted.append(max(1, round(left)))
        self.exact(self.followed(wanted))  # once: it is remembered
        samples = np.array(sorted(self._samples), dtype=np.float64)
        before, after = samples[:, 0] / self.patch_tokens, samples[:, 1] / self.patch_tokens
        pools = (after < before) & (samples[:, 1] > 1)  # one token is made without any search
        blocks = _least_squares(_block_features(before, after), samples[:, 2], np.ones(len(pools)))
        features = _pooling_features(before, before - after)[pools]
        kept = (after / before)[pools]  # cuts of many rounds are no polynomial, and count less
        return blocks, _least_squares(features, samples[pools, 3], kept)


def sharing_weights(model: nn.Module) -> nn.Module:
    """The model unpooled and in eval mode, as modules of its own over the same weights."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return unpool(copy.deepcopy(model, weights)).eval()


def _block_features(before: Floats, after: Floats) -> Floats:
    """Of blocks with such shares of all tokens in and out: (...,) -> (..., 4). Linear layers go
    with the tokens, attention with their square too."""
    return np.stack([np.ones_like(before), before, after, before * before], axis=-1)


def _pooling_features(before: Floats, removed: Floats) -> Floats:
    """Of poolings: distances go with the square of all tokens, comparisons of a few candidates
    with that of the removed ones: (...,) -> (..., 4)."""
    products = (before * before, before * removed, removed * removed)
    return np.stack([before, *products], axis=-1)


def _least_squares(features: Floats, flops: Floats, weights: Floats) -> Floats:
    """Coefficients, none below 0, with the smallest weighted relative errors: (S, F) -> (F,)."""
    from scipy.optimize import nnls  # takes a third of a second to import

    counted = flops > 0
    if not counted.any():
        return np.zeros(features.shape[1])
    scale = flops.max()
    relative = weights[counted] * scale / flops[counted]
    solution, _ = nnls(features[counted] * relative[:, None], weights[counted])
    return np.asarray(solution * scale, dtype=np.float64)
