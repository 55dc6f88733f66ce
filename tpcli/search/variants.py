"""Search space beside the schedule: pooling options, and which blocks pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from tpcli.config.methods import describe
from tpcli.config.options import PoolingOptions, replaced
from tpcli.config.schedule import Tokens
from tpcli.errors import UserError

ITERATIONS = (0, 1, 3, 5)
"""Values that are tried; of the other options, all there are."""


@dataclass(frozen=True)
class Variant:
    """Pooling options, and the only blocks that remove tokens, None for all."""

    options: PoolingOptions
    blocks: Tokens | None = None

    def changes(self, before: Variant) -> str:
        """What is different from `before`, in words."""
        parts = [
            f"{item.name.replace('_', ' ')} {getattr(self.options, item.name)}"
            for item in fields(PoolingOptions)
            if getattr(self.options, item.name) != getattr(before.options, item.name)
        ]
        if self.blocks != before.blocks:
            parts.append(f"only blocks {', '.join(map(str, self.blocks or ()))}")
        return "; ".join(parts)


Move = Callable[[Variant], "Variant | None"]
"""Another variant, or None where this one can't be changed like that."""


def moves(start: Variant, depth: int, varied: Sequence[str]) -> list[list[Move]]:
    """What to try from `start` on: of each list the best one is taken, then comes the next."""
    found: list[list[Move]] = []
    if "options" in varied:
        taken = set(describe(start.options.method)[0].options) - {"attention_bias"}  # same logits
        for item in fields(PoolingOptions):
            values = ITERATIONS if item.name == "iterations" else item.metadata.get("choices", ())
            if item.name in taken and values:
                found.append([partial(_with_option, item.name, value) for value in values])
    if "places" in varied:
        found.append([partial(replace, blocks=blocks) for blocks in block_sets(depth)])
    return found


def block_sets(depth: int) -> list[Tokens]:
    """Sets of blocks: every second, third and fourth one, early and late, and the first half."""
    sets = [
        tuple(range(first, depth, step)) for step in (2, 3, 4) for first in {0, step // 2, step - 1}
    ]
    return list(dict.fromkeys(s for s in [*sets, tuple(range((depth + 1) // 2))] if s))


def best_variant(
    start: Variant,
    tried: Sequence[Sequence[Move]],
    damage: Callable[[Variant], float],
) -> Variant:
    """The variant that `damage` is least for, one kind of change after another.

    Damage is infinite where a variant can't meet the budget or the model can't be pooled by it.
    """
    best, least = start, damage(start)
    for alternatives in tried:
        here = best
        for move in alternatives:
            variant = move(here)
            if variant not in (None, here) and (found := damage(variant)) < least:
                best, least = variant, found
    return best


def _with_option(name: str, value: object, variant: Variant) -> Variant | None:
    try:
        return replace(variant, options=replaced(variant.options, **{name: value}))
    except UserError:
        return None
