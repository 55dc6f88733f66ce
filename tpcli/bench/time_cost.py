"""Time of a schedule on this device, assembled from timed parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression, nnls
from torch import nn

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Tokens
from tpcli.schedules.budget import constant_chain, family_chain
from tpcli.schedules.flops_cost import Cost, FeasibleSchedules, Floats
from tpcli.system.devices import device_name
from tpcli.system.ranks import gathered, team
from tpcli.system.resume import Progress, key

from .clock import BenchOptions
from .stopwatch import PartTimes, time_parts

LEFT = (0.7, 0.45, 0.25, 0.1, 0.0)
"""Of the default family's schedules from the weakest to the strongest, those that are timed, by the
share of all tokens that is left behind the last block."""


class TimeCost(Cost):
    """Time of any schedule for one model, pooling, device, batch size and precision.

    A forward is what surrounds the blocks, then for each block its attention and its MLP, by the
    tokens that are in them, and its pooling. Attention and MLP never get faster with more tokens,
    but may do so in steps, so what was timed is smoothed no more than that: isotonic regression,
    with straight lines between. Attention to all tokens, which have no sizes yet, stands apart:
    where launching is what takes time, sizes make fewer tokens slower. A pooling's time is a
    polynomial, none of its coefficients below 0. Shares are of the unpooled model's time.

    Args:
        timed: what `time_parts` found, the unpooled model first.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PoolingOptions,
        timed: Sequence[PartTimes],
        *,
        last_free: bool = False,
    ) -> None:
        super().__init__(model, options, last_free=last_free)
        counts, others, mlp_counts, mlps = [], [], [], []
        before, removed, poolings = [], [], []
        for each in timed:
            into, out = np.array([self.patch_tokens, *each.tokens[:-1]]), np.array(each.tokens)
            pools = out < into
            counts.append(into)
            others.append(np.subtract(each.blocks, each.mlps) - np.where(pools, each.poolings, 0))
            mlp_counts.append(self._inside_mlp(into, out))
            mlps.append(np.array(each.mlps))
            before.append(into[pools] / self.patch_tokens)
            removed.append((into - out)[pools] / self.patch_tokens)
            poolings.append(np.array(each.poolings)[pools])
        tokens, times = np.concatenate(counts), np.concatenate(others)
        is_all = tokens == self.patch_tokens
        self._of_all = float(times[is_all].mean())
        fewer, theirs = tokens[~is_all], times[~is_all]
        # all tokens count once here, so that they lead on from the largest count that was timed
        self._of_fewer = _rising(
            np.append(fewer, self.patch_tokens), np.append(theirs, self._of_all)
        )
        self._mlp = _rising(np.concatenate(mlp_counts), np.concatenate(mlps))
        features = _features(np.concatenate(before), np.concatenate(removed))
        self._pooling, _ = nnls(features, np.concatenate(poolings))
        self._rest = float(np.median([each.total - sum(each.blocks) for each in timed]))
        self._base = 1.0
        self._base = self.estimate((self.patch_tokens,) * self.depth)

    def estimates(self, schedules: Sequence[Sequence[int]]) -> Floats:
        """Time of each of S schedules: (S,)."""
        out = np.asarray(schedules, dtype=np.float64)
        into = np.concatenate([np.full_like(out[:, :1], self.patch_tokens), out[:, :-1]], axis=1)
        removed = into - out
        attention = np.where(into == self.patch_tokens, self._of_all, self._of_fewer(into))
        times = attention + self._mlp(self._inside_mlp(into, out))
        pooling = _features(into / self.patch_tokens, removed / self.patch_tokens) @ self._pooling
        times += np.where(removed > 0, pooling, 0)
        shares: Floats = (self._rest + times.sum(1)) / self._base
        return shares

    def exact(self, tokens: Sequence[int]) -> float:
        """The estimate: only a run of its own says more."""
        return self.estimate(tokens)

    def _inside_mlp(self, into: Floats, out: Floats) -> Floats:
        return out if self.options.position == "attention" else into


def time_cost(
    model: nn.Module,
    pooling: PoolingOptions,
    options: BenchOptions,
    *,
    last_free: bool = False,
    sharded: bool = False,
    progress: Progress | None = None,
    identity: Mapping[str, Any] | None = None,
    on_round: Callable[[float], None] | None = None,
) -> TimeCost:
    """Time a handful of schedules on the device, and fit a cost to them.

    Args:
        sharded: time on the first rank alone, and have its times on all of them.
        progress: remembers the times, for the model of this `identity`.
        on_round: as for `time_parts`.

    Raises:
        UserError: as `time_parts`.
    """
    timed: list[dict[str, Any]] = []
    if not sharded or team().is_first:
        wanted = probes(model, pooling)
        name = key(
            "time",
            model=identity,
            pooling=pooling.to_dict(),
            schedules=wanted,
            device=device_name(options.device),
            dtype=str(next(model.parameters()).dtype),
            options=asdict(options),
        )
        timed = (progress or Progress())(
            name,
            lambda: [t.to_dict() for t in time_parts(model, pooling, wanted, options, on_round)],
        )
    if sharded:
        timed = gathered(timed)[0]
    parts = [PartTimes.from_dict(values) for values in timed]
    return TimeCost(model, pooling, parts, last_free=last_free)


def probes(model: nn.Module, pooling: PoolingOptions) -> list[Tokens]:
    """Schedules whose parts tell the time of others: of the default family, of constant r, and
    with large cuts at few blocks."""
    feasible = FeasibleSchedules(model, pooling)
    depth, all_tokens = feasible.depth, feasible.patch_tokens
    found: list[Tokens] = []
    few = tuple(depth * (i + 1) // 4 for i in range(3))
    for chain, shares in (
        (family_chain(feasible), LEFT),
        (constant_chain(feasible), LEFT[1:3]),
        (family_chain(feasible, few), LEFT[1:3]),
    ):
        for share in shares:
            near = [abs(tokens[-1] - share * all_tokens) for tokens in chain]
            found.append(chain[int(np.argmin(near))])
    return [tokens for tokens in dict.fromkeys(found) if tokens[-1] < all_tokens]


def _rising(counts: Floats, times: Floats) -> Callable[[Floats], Floats]:
    """Times by the number of tokens, never falling: (S,), (S,)."""
    tokens, position = np.unique(counts, return_inverse=True)
    weights = np.bincount(position)
    means = np.bincount(position, times) / weights
    fitted = isotonic_regression(means, weights=weights).x.clip(min=0)
    return lambda wanted: np.interp(wanted, tokens, fitted)


def _features(before: Floats, removed: Floats) -> Floats:
    """Of poolings: a fixed part, copies of all tokens, distances: (...,) -> (..., 4)."""
    return np.stack([np.ones_like(before), before, before * before, before * removed], axis=-1)
