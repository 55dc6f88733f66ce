"""Schedules on calibration images: cost, damage, and a pattern search over shapes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcli.config.choices import BUDGET_MARGIN
from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule, Tokens
from tpcli.errors import TpcliError, UserError
from tpcli.evaluation.answers import features_of, logits_of
from tpcli.pooling.distances import squared_distances
from tpcli.schedules.budget import family_chain, first_within
from tpcli.schedules.flops_cost import Cost
from tpcli.schedules.shapes import DEFAULT, Shape
from tpcli.surgery import PoolingSpec, TokenPooling, insert, pooling_spec, unpool
from tpcli.surgery.geometry import patch_tokens
from tpcli.surgery.head import last_pooling_is_free
from tpcli.system.ranks import gathered, share
from tpcli.system.resume import Progress, key

from .result import Member
from .variants import Variant, best_variant, moves


class Damage:
    """Mean over calibration images of what pooling changes, for one schedule after another.

    by "kl": KL divergence from the unpooled model's class probabilities to the pooled model's.
    by "similarity": how much the cosine between the features of both falls short of 1.
    by "reconstruction": the loss that Token Pooling minimises (Marin et al.), summed over
    blocks: sum_i s_i min_k ||z_i - c_k||^2 between layer-normalised tokens before and after.

    images: normalised batches on the model's device. The model, which has to be in eval mode, is
    pooled and unpooled in turn. sharded: each rank runs over its share of the images; all ranks
    make the same calls and get the damage to all images.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PoolingOptions,
        images: Sequence[Tensor],
        by: str,
        *,
        sharded: bool = False,
    ) -> None:
        self._model = unpool(model)
        self._options = options
        self._patch_tokens = patch_tokens(model)
        mine = share(sum(map(len, images))) if sharded else None
        self._is_sharded = mine is not None
        if mine is not None:
            images = torch.cat(list(images))[mine.start : mine.stop].split(len(images[0]))
        self._images = images
        self._by = by
        self._losses: list[Tensor] = []
        with torch.inference_mode():
            self._wanted = [self._said(batch) for batch in self._images]

    def under(self, options: PoolingOptions) -> Damage:
        """The damage on the same images under other options."""
        other = copy.copy(self)
        other._options = options
        return other

    def of(self, tokens: Tokens) -> float:
        """Damage done by one schedule: the mean over all images."""
        return float(self.each(tokens).mean())

    def each(self, tokens: Tokens) -> Tensor:
        """Damage done by one schedule to each of M images: (M,) float64, on the CPU."""
        found: list[Tensor] = []
        insert(self._model, PoolingSpec(Schedule(tokens, self._patch_tokens), self._options))
        try:
            with torch.inference_mode(), self._hooked_layers():
                for batch, wanted in zip(self._images, self._wanted, strict=True):
                    said = self._said(batch)
                    if self._by == "kl":
                        terms = F.kl_div(said, wanted, log_target=True, reduction="none")
                        self._losses = [terms.sum(-1)]
                    elif self._by == "similarity":
                        self._losses = [1 - F.cosine_similarity(said, wanted, dim=-1)]
                    none = torch.zeros(len(batch), dtype=torch.float64)
                    found.append(sum((loss.cpu().double() for loss in self._losses), none))
                    self._losses.clear()
        finally:
            unpool(self._model)
        damages = torch.cat(found)
        if self._is_sharded:
            damages = torch.cat(gathered(damages))
        if not bool(damages.isfinite().all()):
            raise TpcliError("the model's output is not finite; check its weights.")
        return damages

    def _said(self, batch: Tensor) -> Tensor:
        """Log probabilities, or features: (B, D)."""
        if self._by == "kl":
            return logits_of(self._model, batch).float().log_softmax(-1)
        return features_of(self._model, batch).float()

    def _hooked_layers(self) -> ExitStack:
        """Collects the reconstruction loss of each pooling layer while it runs."""
        hooks = ExitStack()
        if self._by != "reconstruction":
            return hooks
        spec, blocks = pooling_spec(self._model), list(self._model.blocks)  # type: ignore[arg-type]
        if spec is not None and last_pooling_is_free(self._model, spec.options.position):
            blocks.pop()  # what is lost there, nobody reads
        for layer in (module for block in blocks for module in block.modules()):
            if isinstance(layer, TokenPooling):
                hooks.enter_context(layer.register_forward_hook(self._collect))
        return hooks

    def _collect(self, layer: TokenPooling, inputs: tuple[Any, ...], outputs: Any) -> None:
        before, after = (
            F.layer_norm(tokens[:, layer.prefix_tokens :].float(), tokens.shape[-1:])
            for tokens in (inputs[0], outputs[0])
        )
        nearest = squared_distances(before, after).amin(-1)  # (B, N)
        self._losses.append((nearest if inputs[1] is None else nearest * inputs[1]).sum(1))


VIEWS = 2
"""Crops of each image. A model is surer of its training images than of others and tolerates more
pooling on them; besides, more images tell shapes of schedules apart better."""

SMALLEST_CROP = 0.4
"""Share of the image's area."""


def random_views(batches: Iterable[Tensor], views: int = VIEWS, seed: int = 0) -> list[Tensor]:
    """`views` random crops of every image, at its own size, half of them mirrored.

    Made on the CPU, so that they are the same for every device.

    batches: (B, 3, H, W) each; `views` times as many come back.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        crops(batch.cpu(), generator).to(batch.device) for batch in batches for _ in range(views)
    ]


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random crop of each image, all on the CPU: (B, 3, H, W) -> (B, 3, H, W)."""
    draws = torch.rand(4, len(images), generator=generator)
    side = (SMALLEST_CROP + (1 - SMALLEST_CROP) * draws[0]).sqrt()
    mirror = torch.where(draws[1] < 0.5, -1.0, 1.0)
    across, down = (1 - side) * (2 * draws[2:] - 1)  # where its centre is, in [-1, 1]
    zero = torch.zeros_like(side)
    rows = torch.stack([side * mirror, zero, across, zero, side, down], dim=1)
    grid = F.affine_grid(
        rows.view(-1, 2, 3).to(images.dtype), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


SURE = 2.0
"""Standard errors by which what was found has to beat the default."""


@dataclass(eq=False)
class Trials:
    """Damage of schedules of one model under any variant, remembered.

    start: the variant that others are compared with. on_crops: damage on the random crops that
    schedules are chosen on; on_others: on those that tell whether a gain is more than noise.
    cost_of: cost of schedules under some options, the same object each time.
    progress: remembers damages, for a model and images of this `identity`. on_trial: called after
    each trial.
    """

    start: Variant
    on_crops: Damage
    on_others: Damage
    cost_of: Callable[[PoolingOptions], Cost]
    progress: Progress
    identity: Mapping[str, Any]
    on_trial: Callable[[], None]

    def cost(self, variant: Variant) -> Cost:
        """Cost of schedules under this variant."""
        return self.cost_of(variant.options)

    def damage(self, variant: Variant, tokens: Tokens) -> float:
        """Mean damage on the images that schedules are chosen on."""
        name = key("damage", of=self.identity, pooling=variant.options.to_dict(), tokens=tokens)
        value = self.progress(name, lambda: self.on_crops.under(variant.options).of(tokens))
        self.on_trial()
        return float(value)

    def beats(self, found: tuple[Variant, Tokens], default: tuple[Variant, Tokens]) -> bool:
        """Whether one does less damage than the other by more than noise, on other crops."""
        if found == default:
            return False
        before, after = (
            self.on_others.under(variant.options).each(tokens)
            for variant, tokens in (default, found)
        )
        gain = before - after  # (M,)
        return float(gain.mean()) > SURE * float(gain.std() / len(gain) ** 0.5)


def smallest(cost: Cost, blocks: Tokens | None = None) -> Tokens:
    """One token after the first block that removes any, or as few as the method can make."""
    first = blocks[0] if blocks else 0
    return cost.followed([cost.patch_tokens] * first + [1] * (cost.depth - first))


STARTS: tuple[Shape, ...] = (
    DEFAULT,
    *((slope, curve) for slope in (0, 0.6, -0.6) for curve in (0, 0.6, -0.6) if slope or curve),
)
"""The default family's shape, and those around it."""

FIRST_STEP, SMALLEST_STEP = 0.3, 0.05

PRIOR = 0.1
"""How much dearer damage counts for each unit of squared distance from the default shape: between
shapes that a few hundred images can't tell apart, the one nearest to it."""


def optimise(
    budget: float,
    cost: Cost,
    damage: Callable[[Tokens], float],
    *,
    floor: Tokens,
    known: Sequence[Shape],
    trials: int,
    blocks: Tokens | None = None,
) -> tuple[Shape, Tokens, float]:
    """The best shape, schedule and damage found at `budget` with `trials` schedules tried.

    Two parameters and a prior keep it from fitting the calibration images instead of the model:
    with one parameter per block, schedules that did less damage there did more elsewhere
    (docs/schedules.md). After a grid of starts, the neighbours of the best shape are tried, a step
    away in slope or curvature; the step halves where none of them is better.

    floor: tokens that the schedule has everywhere at least. known: shapes to begin with, before
    `STARTS`. blocks: the only ones that remove tokens, None for all.
    """
    tried: dict[Tokens, float] = {}
    best: tuple[float, Shape, Tokens] | None = None

    def attempt(shape: Shape) -> bool:
        """Whether this shape is better than all before it."""
        nonlocal best
        tokens = fitted(shape, budget, cost, floor, blocks)
        if tokens in tried or len(tried) >= trials:
            return False
        tried[tokens] = damage(tokens)
        price = tried[tokens] * (1 + PRIOR * (shape[0] ** 2 + shape[1] ** 2))
        if best is None or price < best[0]:
            best = (price, shape, tokens)
            return True
        return False

    for shape in [*known, *STARTS]:
        attempt(shape)
    assert best is not None
    step = FIRST_STEP
    while step >= SMALLEST_STEP and len(tried) < trials:
        slope, curve = best[1]
        around = ((step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step))
        better = [attempt((slope + across, curve + up)) for across, up in around]
        if not any(better):
            step /= 2
    return best[1], best[2], tried[best[2]]


def fitted(
    shape: Shape, budget: float, cost: Cost, floor: Tokens, blocks: Tokens | None = None
) -> Tokens:
    """The weakest schedule of this shape whose estimated cost is within `budget`; `floor`, which
    is, where none of the shape's is."""
    chain = family_chain(cost, blocks, shape=shape, floor=floor)
    first = first_within(budget * BUDGET_MARGIN, cost.estimates(chain))
    return chain[first] if first < len(chain) else floor


def find_variant(trials: Trials, budget: float, varied: Sequence[str]) -> Variant:
    """The best variant under the default family at `budget`.

    `start` itself where the best one is not better by more than noise.
    """

    def default(variant: Variant) -> Tokens:
        cost = trials.cost(variant)
        return fitted(DEFAULT, budget, cost, smallest(cost, variant.blocks), variant.blocks)

    def damage(variant: Variant) -> float:
        try:
            tokens = default(variant)
            if trials.cost(variant).exact(tokens) > budget:
                return math.inf
            return trials.damage(variant, tokens)
        except UserError:  # of the model, which can't be pooled like this
            return math.inf

    start = trials.start
    best = best_variant(start, moves(start, trials.cost(start).depth, varied), damage)
    sure = trials.beats((best, default(best)), (start, default(start)))
    return best if sure else start


def find_family(
    trials: Trials, variant: Variant, budgets: Sequence[float], each: int
) -> list[Member]:
    """From the smallest budget up, each schedule above the one before; returned falling.

    Where what was found is not better than the default family's schedule by more than noise, the
    default stays. each: schedules that are tried per budget.
    """
    cost = trials.cost(variant)
    floor = smallest(cost, variant.blocks)
    shapes: list[Shape] = []
    members: list[Member] = []
    for budget in sorted(set(budgets)):
        default = fitted(DEFAULT, budget, cost, floor, variant.blocks)
        shape, best, lost = optimise(
            budget,
            cost,
            lambda tokens: trials.damage(variant, tokens),
            floor=floor,
            known=shapes,
            trials=each,
            blocks=variant.blocks,
        )
        if best != default and not trials.beats((variant, best), (variant, default)):
            shape, best, lost = DEFAULT, default, trials.damage(variant, default)
        shapes, floor = [shape], best
        members.append(Member(best, cost.exact(best), lost, best != default))
    return members[::-1]
