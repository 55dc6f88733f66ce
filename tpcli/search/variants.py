"""What the default family does not fix: options other than the method's own, and fewer places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from tpcli.config.methods import describe
from tpcli.config.options import PoolingOptions, replaced
from tpcli.config.schedule import Tokens
from tpcli.errors import UserError

"""What a search can vary besides the shape of the schedule."""

ITERATIONS = (0, 1, 3, 5)
"""Values that are tried; of the other options, all there are."""


@dataclass(frozen=True)
class Way:
    """A way of pooling: its options, and the only blocks that remove tokens, None for all."""

    options: PoolingOptions
    blocks: Tokens | None = None

    def changes(self, before: Way) -> str:
        """What is different from `before`, in words."""
        parts = [
            f"{item.name.replace('_', ' ')} {getattr(self.options, item.name)}"
            for item in fields(PoolingOptions)
            if getattr(self.options, item.name) != getattr(before.options, item.name)
        ]
        if self.blocks != before.blocks:
            parts.append(f"only blocks {', '.join(map(str, self.blocks or ()))}")
        return "; ".join(parts)


Move = Callable[[Way], "Way | None"]
"""Another way, or None where this one can't be changed like that."""


def moves(start: Way, depth: int, varied: Sequence[str]) -> list[list[Move]]:
    """What to try from `start` on: of each list the best one is taken, then comes the next."""
    found: list[list[Move]] = []
    if "options" in varied:
        taken = describe(start.options.method)[0].options
        for item in fields(PoolingOptions):
            values = ITERATIONS if item.name == "iterations" else item.metadata.get("choices", ())
            if item.name in taken and values:
                found.append([_setting(item.name, value) for value in values])
    if "places" in varied:
        found.append([_pooling_at(blocks) for blocks in places(depth)])
    return found


def places(depth: int) -> list[Tokens]:
    """Sets of blocks: every second, third and fourth one, early and late, and the first half."""
    sets = [
        tuple(range(first, depth, step)) for step in (2, 3, 4) for first in {0, step // 2, step - 1}
    ]
    return list(dict.fromkeys(s for s in [*sets, tuple(range((depth + 1) // 2))] if s))


def best_way(
    start: Way,
    tried: Sequence[Sequence[Move]],
    damage: Callable[[Way], float],
) -> Way:
    """The way that `damage` is least for, one kind of change after another.

    Damage is infinite for a way that can't meet the budget or that the model can't be pooled in.
    """
    best, least = start, damage(start)
    for alternatives in tried:
        here = best
        for move in alternatives:
            way = move(here)
            if way is None or way == here:
                continue
            found = damage(way)
            if found < least:
                best, least = way, found
    return best


def _setting(name: str, value: object) -> Move:
    def move(way: Way) -> Way | None:
        try:
            return replace(way, options=replaced(way.options, **{name: value}))
        except UserError:
            return None

    return move


def _pooling_at(blocks: Tokens) -> Move:
    return lambda way: replace(way, blocks=blocks)
