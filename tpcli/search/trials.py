"""Schedules tried on calibration images: what they cost, what damage they do, which is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tpcli.cost import Cost
from tpcli.errors import UserError
from tpcli.options import PoolingOptions
from tpcli.processes import gathered
from tpcli.profile import DEFAULT, Shape
from tpcli.schedule import Tokens

from .checkpoint import Key, Memory
from .objectives import Damage
from .optimise import fitted, optimise
from .result import Member
from .views import random_views
from .ways import Way, best_way, moves

SURE = 2.0
"""Standard errors by which what was found has to beat the default."""


class Trials:
    """Tries schedules of one model, pooled in one way or another, and remembers what they did.

    start: the way that others are compared with. images: normalised batches; random crops of them
    are what schedules are chosen on, and other crops settle whether a gain is more than noise.
    cost_of: what schedules cost under some options, the same object each time.
    checkpoint, identity: of the memory. on_trial: called after each trial. together: as for
    `Damage`; what the first process remembers counts.
    """

    def __init__(
        self,
        model: nn.Module,
        start: Way,
        images: Sequence[Tensor],
        by: str,
        *,
        cost_of: Callable[[PoolingOptions], Cost],
        checkpoint: Path | None,
        identity: Mapping[str, Any],
        on_trial: Callable[[], None],
        together: bool = False,
    ) -> None:
        self.start = start
        self.memory = Memory(checkpoint, identity)
        if together:
            self.memory.values = gathered(self.memory.values)[0]

        def damage(views: Sequence[Tensor]) -> Damage:
            return Damage(model, start.options, views, by, together=together)

        self._damage = damage(random_views(images))
        self._others = damage(random_views(images, seed=1))
        self._cost_of = cost_of
        self._on_trial = on_trial

    def cost(self, way: Way) -> Cost:
        """What schedules cost where tokens are pooled in this way."""
        return self._cost_of(way.options)

    def damage(self, way: Way, tokens: Tokens) -> float:
        """Mean damage on the images that schedules are chosen on."""
        key: Key = (way.changes(self.start), *tokens)
        value = self.memory(key, lambda: self._damage.under(way.options).of(tokens))
        self._on_trial()
        return value

    def beats(self, found: tuple[Way, Tokens], default: tuple[Way, Tokens]) -> bool:
        """Whether one does less damage than the other by more than noise, on other crops."""
        if found == default:
            return False
        before, after = (
            self._others.under(way.options).each(tokens) for way, tokens in (default, found)
        )
        gain, error = gained(before, after)
        return gain > SURE * error


def gained(before: Tensor, after: Tensor) -> tuple[float, float]:
    """How much less damage each image takes on average, and the standard error: (M,), (M,)."""
    less = before - after
    return float(less.mean()), float(less.std() / len(less) ** 0.5)


def smallest(cost: Cost, blocks: Tokens | None = None) -> Tokens:
    """One token after the first block that removes any, or as few as the method can make."""
    first = blocks[0] if blocks else 0
    return cost.followed([cost.patch_tokens] * first + [1] * (cost.depth - first))


def find_way(trials: Trials, budget: float, varied: Sequence[str]) -> Way:
    """The best way of pooling under the default family at `budget`.

    `start` itself where the best one is not better by more than noise.
    """

    def default(way: Way) -> Tokens:
        cost = trials.cost(way)
        return fitted(DEFAULT, budget, cost, smallest(cost, way.blocks), way.blocks)

    def damage(way: Way) -> float:
        try:
            tokens = default(way)
            if trials.cost(way).exact(tokens) > budget:
                return math.inf
            return trials.damage(way, tokens)
        except UserError:  # of the model, which can't be pooled like this
            return math.inf

    start = trials.start
    best = best_way(start, moves(start, trials.cost(start).depth, varied), damage)
    sure = trials.beats((best, default(best)), (start, default(start)))
    return best if sure else start


def find_family(trials: Trials, way: Way, budgets: Sequence[float], each: int) -> list[Member]:
    """From the smallest budget up, each schedule above the one before; returned falling.

    Where what was found is not better than the default family's schedule by more than noise, the
    default stays. each: schedules that are tried per budget.
    """
    cost = trials.cost(way)
    floor = smallest(cost, way.blocks)
    shapes: list[Shape] = []
    members: list[Member] = []
    for budget in sorted(set(budgets)):
        default = fitted(DEFAULT, budget, cost, floor, way.blocks)
        shape, best, lost = optimise(
            budget,
            cost,
            lambda tokens: trials.damage(way, tokens),
            floor=floor,
            known=shapes,
            trials=each,
            blocks=way.blocks,
        )
        if best != default and not trials.beats((way, best), (way, default)):
            shape, best, lost = DEFAULT, default, trials.damage(way, default)
        shapes, floor = [shape], best
        members.append(Member(best, cost.exact(best), lost, best != default))
    return members[::-1]
