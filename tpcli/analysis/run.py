"""Measure the tokens of a model on images, block by block, in bounded memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import HybridEmbed
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn

from tpcli.config.options import PoolingOptions
from tpcli.data import ImageData
from tpcli.errors import TpcliError, UserError
from tpcli.evaluation.run import RunOptions, check_size, stream
from tpcli.pooling import get_method
from tpcli.surgery import check_supported, find, unpooled
from tpcli.surgery.families import FAMILIES
from tpcli.surgery.geometry import patch_grid
from tpcli.surgery.patching import override, restore

from . import measures
from .result import KEEP, Analysis, Kept, Stage

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


SCALARS: dict[str, Callable[[Tensor], Tensor]] = {
    "hf_lf_ratio": measures.hf_lf_ratio,
    "residual": measures.residual,
    "effective_rank": measures.effective_rank,
    "mean_cosine": measures.mean_cosine,
    "nearest_distance": measures.nearest_distance,
}


def analyze(
    model: nn.Module,
    data: ImageData,
    methods: Sequence[PoolingOptions],
    run: RunOptions | None = None,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Analysis:
    """Measure patch tokens without pooling, and what each method would keep of them.

    The model is left as it was. Redundancy is that of the tokens between attention and MLP, where
    pooling sits, or after the block where the two run side by side.

    Raises:
        UserError: a method chooses by attention, an image can't be read with `strict`, none can, or
            memory runs out.
    """
    check_supported(model)
    model = find(model)
    check_size(model, data)
    check_methods(methods)
    sums, count = _Sums(model, methods), 0

    def tokens(model: nn.Module, images: Tensor) -> Tensor:
        features: Tensor = model.forward_features(images)  # type: ignore[operator]
        return features

    def take(tokens: Tensor, targets: Tensor) -> None:
        nonlocal count
        count += len(targets)

    with unpooled(model), stages(model, sums.add):
        _, unreadable = stream(
            model, data, take, run or RunOptions(32), answer=tokens, on_batch=on_batch
        )
    return sums.result(count, unreadable)


def check_methods(methods: Sequence[PoolingOptions]) -> None:
    """Raise where a method can't be measured on tokens alone.

    Raises:
        UserError: it chooses by attention.
    """
    for options in methods:
        if options.needs_scores:
            raise UserError(
                f"method {options.method} chooses tokens by their attention, which is not measured "
                "here; use one that goes by the tokens themselves, such as ward or tome."
            )


class _Sums:
    """Sums over images, by block and stage."""

    def __init__(self, model: nn.Module, methods: Sequence[PoolingOptions]) -> None:
        self.grid = patch_grid(model)
        self.patches = self.grid[0] * self.grid[1]
        self.prefix = int(model.num_prefix_tokens)  # type: ignore[arg-type]
        self.channels = int(model.embed_dim)  # type: ignore[arg-type]
        self.depth = len(model.blocks)  # type: ignore[arg-type]
        self.no_spectrum = why_no_grid(model, self.grid)
        self.methods = methods
        has_place = [FAMILIES[type(b)].halves is not None for b in model.blocks]  # type: ignore[union-attr]
        self.pools_at = ["attention" if place else "mlp" for place in has_place]
        self.entered = torch.empty(0)
        self.scalars: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.losses: dict[tuple[int, str, float], Tensor] = defaultdict(partial(torch.zeros, ()))

    def add(self, index: int, stage: str, tokens: Tensor) -> None:
        """Add one batch. What enters a block is what left the one before, and is known."""
        if stage == "input" and index > 0:
            return
        x = tokens[:, self.prefix :].float()
        entered = self.entered
        if stage != "attention":
            self.entered = x
        with torch.autocast(x.device.type, enabled=False):
            found = {name: measure(x).sum().cpu().double() for name, measure in SCALARS.items()}
            if stage != "input" and self.patches > 2:
                consistent = measures.rank_consistency(x, entered).sum()
                found["rank_consistency"] = consistent.cpu().double()
            if not self.no_spectrum:
                found["spectrum"] = measures.log_amplitudes(x, self.grid).sum(0).cpu().double()
            if stage == self.pools_at[index]:
                self._reconstruct(index, x)
        held = self.scalars.setdefault((index, stage), dict.fromkeys(found, torch.zeros(())))
        for name, value in found.items():
            held[name] = held[name] + value

    def _reconstruct(self, index: int, x: Tensor) -> None:
        whole = measures.spread_loss(x).sum().cpu().double()
        self.losses[index, "", 1.0] = self.losses[index, "", 1.0] + whole
        for options in self.methods:
            for keep in KEEP:
                k = self.tokens(options, keep)
                loss = torch.zeros(())
                if k < self.patches:
                    depth = index / self.depth
                    loss = measures.reconstruction(x, k, options, self.grid, depth).sum().cpu()
                key = index, options.method, keep
                self.losses[key] = self.losses[key] + loss.double()

    def tokens(self, options: PoolingOptions, keep: float) -> int:
        """K for a share of the tokens: the next that the method can make."""
        wanted = round(keep * self.patches)
        return get_method(options.method).allowed(self.patches, wanted, self.grid)

    def result(self, count: int, unreadable: tuple[str, ...]) -> Analysis:
        """Means over `count` images."""
        blocks: list[Stage] = []
        for (index, stage), held in sorted(self.scalars.items(), key=lambda item: item[0][0]):
            if index > 0 and blocks[-1].index < index:
                entering = replace(blocks[-1], index=index, stage="input", rank_consistency=None)
                blocks.append(entering)
            line = tuple((held["spectrum"] / count).tolist()) if "spectrum" in held else ()
            means = {name: float(held[name] / count) for name in SCALARS}
            if not all(map(math.isfinite, means.values())):
                raise TpcliError(
                    f"the tokens of block {index} are not finite; try without `amp`, or check the "
                    "model's weights."
                )
            ranked = float(held["rank_consistency"] / count) if "rank_consistency" in held else None
            blocks.append(
                Stage(
                    index, stage, line[-1] if line else None, **means,
                    rank_consistency=ranked, spectrum=line,
                )
            )  # fmt: skip
        kept = []
        for index in range(self.depth):
            whole = float(self.losses[index, "", 1.0])
            for options in self.methods:
                for keep in KEEP:
                    lost = float(self.losses[index, options.method, keep])
                    share = 1 - lost / whole if whole else 1.0
                    k = self.tokens(options, keep)
                    kept.append(Kept(index, options.method, keep, k, share))
        return Analysis(
            count, self.patches, self.channels, tuple(blocks), tuple(kept), self.no_spectrum,
            unreadable,
        )  # fmt: skip
