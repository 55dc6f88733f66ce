"""Solve a FLOPs budget: the constant-r schedule that comes closest without exceeding it."""

from __future__ import annotations

import copy
from bisect import bisect_left

from torch import nn

from tpcli.errors import UserError
from tpcli.flops import count_flops
from tpcli.options import PoolingOptions
from tpcli.schedule import Schedule, constant_removal
from tpcli.surgery import pool, unpool
from tpcli.surgery.insert import patch_tokens

ATTENTION_OP = "scaled_dot_product_attention"


class BudgetSolver:
    """Finds constant-r schedules for one model and one set of pooling options.

    FLOPs are counted on the pooled model itself, clustering included, and remembered, so that
    several budgets share their counts.
    """

    def __init__(self, model: nn.Module, options: PoolingOptions) -> None:
        self._model = unpool(copy.deepcopy(model)).eval()
        self._options = options
        self._patch_tokens = patch_tokens(self._model)
        self._depth = len(self._model.blocks)  # type: ignore[arg-type]
        base = count_flops(self._model)
        self.base_flops = base.total
        self._attention_share = base.by_op.get(ATTENTION_OP, 0) / base.total
        self._pooling_per_square = 0.0  # learnt from the last count
        self._counts: dict[int, int] = {0: self.base_flops}

    def tokens(self, total: int) -> tuple[int, ...]:
        """Tokens per block when `total` tokens are removed evenly over the blocks."""
        return constant_removal(self._patch_tokens, self._depth, total)

    def flops(self, total: int) -> int:
        """FLOPs of that schedule."""
        if total not in self._counts:
            schedule = Schedule(self.tokens(total), self._patch_tokens)
            pool(self._model, schedule, self._options)
            self._counts[total] = count_flops(self._model).total
            blocks, squares = self._estimate_parts(total)
            self._pooling_per_square = (self._counts[total] - blocks) / squares
        return self._counts[total]

    def solve(self, budget: float) -> tuple[int, ...]:
        """Tokens per block whose FLOPs are the largest that do not exceed `budget` of the base's.

        Raises:
            UserError: even the strongest cut costs more; says what can be reached.
        """
        target = budget * self.base_flops
        if target >= self.base_flops:
            return self.tokens(0)
        low, high = (
            0,
            self._patch_tokens // 2 * self._depth + 1,
        )  # flops(low) > target, high: unknown
        guess = self._guess(target, low, high)
        while True:
            flops = self.flops(guess)
            if flops > target:
                low = guess
            else:
                high = guess
                one_less = flops + self._estimate(guess - 1) - self._estimate(guess)
                if one_less > target:  # the next weaker cut is too expensive
                    return self.tokens(guess)
            if high - low == 1:
                break
            guess = self._guess(target, low, high)
        if high not in self._counts:
            raise UserError(
                f"budget {budget:g} can't be reached; the smallest that method "
                f"{self._options.method} reaches on this model is "
                f"{self.flops(low) / self.base_flops:.3f}."
            )
        return self.tokens(high)

    def _guess(self, target: float, low: int, high: int) -> int:
        """The weakest cut between two others that should fit."""
        cuts = range(low + 1, high)
        fits = bisect_left(cuts, True, key=lambda t: self._estimate(t) <= target)
        return cuts[min(fits, len(cuts) - 1)]

    def _estimate(self, total: int) -> float:
        """FLOPs as they should be: blocks in closed form, pooling as a multiple of its N^2."""
        blocks, squares = self._estimate_parts(total)
        return blocks + self._pooling_per_square * squares

    def _estimate_parts(self, total: int) -> tuple[float, float]:
        """FLOPs of the blocks without pooling, and the sum of N^2 over the blocks that pool."""
        n, attention = self._patch_tokens, self._attention_share
        mlp = (1 - attention) * 2 / 3  # 8 C^2 of 12 C^2 per token
        out = self.tokens(total)
        blocks, squares = 0.0, 0.0
        for before, after in zip((n, *out), out, strict=False):
            in_mlp = after if self._options.position != "block" else before
            blocks += attention * (before / n) ** 2
            blocks += (1 - attention - mlp) * before / n + mlp * in_mlp / n
            squares += before**2 if after < before else 0
        return self.base_flops * blocks / self._depth, squares


def solve_budget(model: nn.Module, options: PoolingOptions, budget: float) -> tuple[int, ...]:
    """One budget, for one model: tokens per block."""
    return BudgetSolver(model, options).solve(budget)
