"""Tokens inside the blocks of a model: at the input, after attention, after the MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timm.layers import HybridEmbed
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn

from tpcli.surgery.families import FAMILIES
from tpcli.surgery.overrides import override, restore

STAGES = ("input", "attention", "mlp")
See = Callable[[int, str, Tensor], None]
"""see(index of the block, stage, (B, P + N, C))."""


@contextmanager
def stages(model: nn.Module, see: See) -> Iterator[None]:
    """Show `see` the tokens of every forward in the body, block by block and stage by stage.

    A block that runs attention and MLP side by side has no stage between them.
    """
    blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
    try:
        for index, block in enumerate(blocks):
            override(block, "forward", _staged, index, see)
        yield
    finally:
        for block in blocks:
            restore(block, "forward")


def _staged(block: nn.Module, index: int, see: See, x: Tensor, **kwargs: Any) -> Tensor:
    halves = FAMILIES[type(block)].halves
    see(index, "input", x)
    if halves is None:
        out: Tensor = type(block).forward(block, x, **kwargs)
    else:
        attend, transform = halves
        between = attend(block, x, **kwargs)
        see(index, "attention", between)
        out = transform(block, between)
    see(index, "mlp", out)
    return out


def why_no_grid(model: nn.Module, grid: tuple[int, int]) -> str:
    """Why the tokens of a model have no frequencies; empty where they have."""
    if isinstance(model, NaFlexVit):
        return "NaFlexVit takes images of any shape, so its tokens lie on no fixed grid"
    if isinstance(getattr(model, "patch_embed", None), HybridEmbed):
        return "the tokens of a hybrid are made by convolutions, and their grid is no image's"
    if min(grid) < 3:
        return f"a grid of {grid[0]} x {grid[1]} patches has no frequencies to compare"
    return ""
