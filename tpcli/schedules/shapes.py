"""Parametric schedules: how the removal is shared among the blocks, at any strength."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from tpcli.config.schedule import Tokens

Floats = npt.NDArray[np.float64]

Shape = tuple[float, float]
"""What is added to slope and curvature of the default family."""

DEFAULT: Shape = (0.0, 0.0)

BEND = 0.2
"""Slope and curvature of the default family for each unit of strength: chosen on several models,
each time without the one that it was tried on (docs/schedules.md)."""

STRONGEST, STEPS = 30.0, 4096
"""Strength that leaves one token after the first block, and strengths that are told apart."""


def profile(
    depth: int, strength: Floats, shape: Shape = DEFAULT, blocks: Collection[int] | None = None
) -> Floats:
    """The share of all removal that each block takes, at each strength: (S,) -> (S, depth).

    exp(-slope t + curve t^2), t from -1 at the first block to 1 at the last, scaled to a sum of 1.
    Both numbers are BEND * strength and what `shape` adds: a mild cut takes the same share of its
    tokens from every block, a strong one more from the first blocks and from the last.

    blocks: the only ones that remove tokens, None for all.
    """
    place = 2 * np.arange(depth) / max(depth - 1, 1) - 1
    slope, curve = (BEND * strength[:, None] + more for more in shape)
    shares = np.exp(-slope * place + curve * place**2)
    if blocks is not None:
        shares[:, [block for block in range(depth) if block not in blocks]] = 0
    normal: Floats = shares / shares.sum(1, keepdims=True)
    return normal


def schedules(
    patch_tokens: int,
    depth: int,
    shape: Shape = DEFAULT,
    *,
    blocks: Collection[int] | None = None,
    floor: Tokens | None = None,
) -> list[Tokens]:
    """Schedules of one shape from the weakest to the strongest, each different from the one before.

    At strength s a share exp(-s) of all tokens is left in the end, nowhere less than `floor`. No
    block of a stronger schedule has more tokens than the same block of a weaker one.
    """
    strength = STRONGEST * (np.arange(STEPS) / (STEPS - 1)) ** 2  # mild ones lie closer
    removed = strength[:, None] * profile(depth, strength, shape, blocks).cumsum(1)
    tokens = np.maximum(np.rint(patch_tokens * np.exp(-removed)), floor or 1).astype(int)
    tokens = np.minimum.accumulate(tokens, axis=0)
    return list(dict.fromkeys(map(tuple, tokens.tolist())))
