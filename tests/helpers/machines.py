"""Made-up machines, whose times are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tpcli.bench.stopwatch import PartTimes
from tpcli.config.schedule import Tokens
from tpcli.surgery.geometry import patch_tokens


def machine(
    tokens: Tokens,
    attention: Callable[[int], float],
    mlp: Callable[[int], float],
    inside: bool,
    sizes: float = 0.0,
) -> PartTimes:
    """A forward of 64 tokens on a machine with these times, in shares of the unpooled one.

    sizes: what attention takes more once tokens have sizes.
    """
    base = 0.5 + len(tokens) * (attention(64) + mlp(64))
    blocks, mlps, poolings = [], [], []
    for before, after in zip((64, *tokens[:-1]), tokens, strict=True):
        mlps.append(mlp(after if inside else before) / base)
        poolings.append((0.2 + 1e-4 * before**2) / base if after < before else 0.0)
        own = attention(before) + (sizes if before < 64 else 0)
        blocks.append(own / base + mlps[-1] + poolings[-1])
    return PartTimes(tokens, 0.5 / base + sum(blocks), tuple(blocks), tuple(mlps), tuple(poolings))


def known_times(model: nn.Module, pooling: object, schedules: list[Tokens], *_: object) -> Any:
    """`time_parts` of a machine whose time goes with the tokens alone."""
    unpooled = (patch_tokens(model),) * len(schedules[0])
    return [machine(tokens, float, float, inside=True) for tokens in (unpooled, *schedules)]
