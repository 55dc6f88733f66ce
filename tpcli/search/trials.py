"""Schedules tried on calibration images: what they cost, what damage they do, which is better."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule, Tokens
from tpcli.errors import TpcliError, UserError
from tpcli.evaluation.answers import features_of, logits_of
from tpcli.pooling.distances import squared_distances
from tpcli.schedules.flops_cost import Cost
from tpcli.schedules.shapes import DEFAULT, Shape
from tpcli.surgery import PoolingSpec, TokenPooling, insert, pooling_spec, unpool
from tpcli.surgery.geometry import patch_tokens
from tpcli.surgery.head import last_pooling_is_free
from tpcli.system.ranks import gathered, share
from tpcli.system.resume import Progress, key

from .pattern import fitted, optimise
from .result import Member
from .variants import Way, best_way, moves


class Damage:
    """Mean over calibration images of what pooling changes, for one schedule after another.

    by "kl": KL divergence from the unpooled model's class probabilities to the pooled model's.
    by "similarity": how much the cosine between the features of both falls short of 1.
    by "reconstruction": the loss that Token Pooling minimises (Marin et al.), summed over
    blocks: sum_i s_i min_k ||z_i - c_k||^2 between layer-normalised tokens before and after.

    images: normalised batches on the model's device. The model, which has to be in eval mode, is
    pooled and unpooled in turn. together: whether the processes that were started for one command
    run over a share of the images each; all then ask for the same, and have the damage to all.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PoolingOptions,
        images: Sequence[Tensor],
        by: str,
        *,
        together: bool = False,
    ) -> None:
        self._model = unpool(model)
        self._options = options
        self._patch_tokens = patch_tokens(model)
        own = _share(images) if together else None
        self._is_dealt = own is not None
        self._images = images if own is None else own
        self._by = by
        self._losses: list[Tensor] = []
        with torch.inference_mode():
            self._wanted = [self._said(batch) for batch in self._images]

    def under(self, options: PoolingOptions) -> Damage:
        """The damage on the same images of pooling in another way."""
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
            with torch.inference_mode(), self._watching_layers():
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
        if self._is_dealt:
            damages = torch.cat(gathered(damages))
        if not bool(damages.isfinite().all()):
            raise TpcliError("the model's output is not finite; check its weights.")
        return damages

    def _said(self, batch: Tensor) -> Tensor:
        """Log probabilities, or features: (B, D)."""
        if self._by == "kl":
            return logits_of(self._model, batch).float().log_softmax(-1)
        return features_of(self._model, batch).float()

    @contextmanager
    def _watching_layers(self) -> Iterator[None]:
        """Collect the reconstruction loss of each pooling layer while it runs."""
        spec, blocks = pooling_spec(self._model), list(self._model.blocks)  # type: ignore[arg-type]
        if spec is not None and last_pooling_is_free(self._model, spec.options.position):
            blocks.pop()  # what is lost there, nobody reads
        layers = [m for block in blocks for m in block.modules() if isinstance(m, TokenPooling)]
        hooks = [
            layer.register_forward_hook(self._collect)
            for layer in layers
            if self._by == "reconstruction"
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _collect(self, layer: TokenPooling, inputs: tuple[Any, ...], outputs: Any) -> None:
        before, after = (
            F.layer_norm(tokens[:, layer.prefix_tokens :].float(), tokens.shape[-1:])
            for tokens in (inputs[0], outputs[0])
        )
        nearest = squared_distances(before, after).amin(-1)  # (B, N)
        self._losses.append((nearest if inputs[1] is None else nearest * inputs[1]).sum(1))


def _share(images: Sequence[Tensor]) -> list[Tensor] | None:
    """This process's part of the images, in batches as large; None where nothing is dealt out."""
    mine = share(sum(map(len, images)))
    if mine is None:
        return None
    return list(torch.cat(list(images))[mine.start : mine.stop].split(len(images[0])))


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


class Trials:
    """Tries schedules of one model, pooled in one way or another, and remembers what they did.

    start: the way that others are compared with. images: normalised batches; random crops of them
    are what schedules are chosen on, and other crops settle whether a gain is more than noise.
    cost_of: what schedules cost under some options, the same object each time.
    progress: remembers damages, for a model and images of this `identity`. on_trial: called after
    each trial. together: as for `Damage`.
    """

    def __init__(
        self,
        model: nn.Module,
        start: Way,
        images: Sequence[Tensor],
        by: str,
        *,
        cost_of: Callable[[PoolingOptions], Cost],
        progress: Progress,
        identity: Mapping[str, Any],
        on_trial: Callable[[], None],
        together: bool = False,
    ) -> None:
        self.start = start
        self._progress = progress
        self._identity = identity

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
        name = key("damage", of=self._identity, pooling=way.options.to_dict(), tokens=tokens)
        value = self._progress(name, lambda: self._damage.under(way.options).of(tokens))
        self._on_trial()
        return float(value)

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
