"""`search`: a whole family of schedules for one model and method, from a few unlabelled images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tpcli.bench.clock import BenchOptions
from tpcli.bench.time_cost import time_cost
from tpcli.config.choices import OBJECTIVES, SEARCH_BUDGETS, SEARCH_SPACES, check_choice
from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Tokens
from tpcli.data import UNREADABLE, ImageData, batches, chosen_on, create
from tpcli.errors import UserError
from tpcli.models.load import model_identity
from tpcli.schedules.flops_cost import Cost, CostModel
from tpcli.surgery import unpooled, with_place
from tpcli.surgery.attention import significance_scores
from tpcli.surgery.head import last_pooling_is_free
from tpcli.system.devices import borrowed, device_name, explain_out_of_memory, pick_device
from tpcli.system.resume import Progress
from tpcli.version import __version__

from .result import Member, SearchResult
from .trials import VIEWS, Damage, Trials, find_family, find_variant, random_views, smallest
from .variants import Variant, moves


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    by: what a schedule is judged by; None for "kl" in models with a head, else "similarity".
    images: number of calibration images. budgets: shares of the base FLOPs at which the family is
    searched for. trials: schedules that are tried per budget.
    vary: what is searched besides the schedule: "options", "places". focus: the budget at which
    those are compared; the smallest where left out. last_free: leave one patch token for the last
    block's MLP, in models whose answers don't depend on it (`surgery.head.last_pooling_is_free`).
    timing: budgets are shares of the time, measured so; None for shares of the FLOPs.

    Raises:
        UserError: a value is not among those accepted.
    """

    by: str | None = None
    images: int = 256
    budgets: tuple[float, ...] = SEARCH_BUDGETS
    trials: int = 16
    vary: tuple[str, ...] = ()
    focus: float | None = None
    last_free: bool = False
    timing: BenchOptions | None = None
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.by is not None:
            check_choice("by", self.by, OBJECTIVES)
        for name, value in (("images", self.images), ("trials", self.trials)):
            if value < 1:
                raise UserError(f"`{name}={value}` is below 1; use 1 or more.")
        for what in self.vary:
            check_choice("vary", what, SEARCH_SPACES)
        if self.vary and self.by == "significance":
            raise UserError("by 'significance' tells no two variants apart; use another `by`.")
        for budget in self.budgets:
            if not 0 < budget <= 1:
                raise UserError(
                    f"budget {budget:g} is out of range; use a share of the FLOPs in (0, 1]."
                )


def budgets_with(budget: float, apart: float = 0.06) -> tuple[float, ...]:
    """The usual budgets, and `budget` in place of those that are near it."""
    usual = [b for b in SEARCH_BUDGETS if abs(b - budget) >= apart]
    return tuple(sorted([budget, *usual], reverse=True))


def search(
    model: nn.Module,
    data: ImageData,
    pooling: PoolingOptions,
    options: SearchOptions | None = None,
    *,
    name: str = "",
    progress: Progress | None = None,
    on_trial: Callable[[int, int], None] | None = None,
    sharded: bool = False,
) -> SearchResult:
    """Search tokens per block for `model`, pooled by `pooling`, at several budgets at once.

    From the smallest budget to the largest: find the profile that does least damage, with nowhere
    fewer tokens than at the budget before. The model is left as it was, also by an exception.

    Args:
        data: calibration images, the first `options.images` of them; labels are not used.
        name: what the model is called in `made_by`.
        progress: remembers damages and times.
        on_trial: called with trials done and trials in all.
        sharded: shard the images over the ranks; the first one's `progress` counts, and all find
            the same.

    Raises:
        UserError: there are fewer images than asked for, the smallest budget is out of reach, or
            the model gives no class probabilities to judge by.
    """
    options = _settled(options or SearchOptions(), model)
    device = pick_device(options.device)
    progress = progress or Progress()
    if sharded:
        progress.share()
    identity = model_identity(model)
    made_by = {
        "command": "tpcli schedule",
        "version": __version__,
        "model": name,
        "weights": identity["weights"],
        "data": data.spec,
        "split": data.split,
        "chosen_on": chosen_on(data, options.images),
        **asdict(options),
        "budgets": list(options.budgets),
    }
    images = calibration_images(data, options, device)
    change = None

    @cache
    def cost_of(pooling: PoolingOptions) -> Cost:
        """FLOPs, or time on this device (the first process's), of each variant's schedules."""
        if options.timing is None:
            return CostModel(model, pooling, last_free=options.last_free)
        return time_cost(
            model, pooling, options.timing, last_free=options.last_free,
            sharded=sharded, progress=progress, identity=identity,
        )  # fmt: skip

    with borrowed(model, device), unpooled(model), explain_out_of_memory(options.batch_size):
        variant = Variant(with_place(model, pooling))
        if options.last_free and not last_pooling_is_free(model, variant.options.position):
            raise UserError(
                "last_free changes the answers of this model, whose head reads patch tokens or "
                "whose last pooling comes before what its answers are made of; leave it out."
            )
        cost = cost_of(variant.options)
        least = smallest(cost)
        # counted by a model of its own, whose estimates so strong a cut may bend
        apart = cost if options.timing else cost_of.__wrapped__(variant.options)
        _check_reachable(min(options.budgets), apart.exact(least), apart, options.timing)
        if options.by == "significance":
            found = by_threshold(model, images, options.budgets, cost)
        else:
            assert options.by is not None
            made_by["views"] = VIEWS
            done, total = itertools.count(1), trials_in(options, pooling, cost.depth)
            on_crops, on_others = (
                Damage(model, variant.options, views, options.by, sharded=sharded)
                for views in (random_views(images), random_views(images, seed=1))
            )
            trials = Trials(
                variant,
                on_crops,
                on_others,
                cost_of=cost_of,
                progress=progress,
                identity={
                    "model": identity,
                    "images": [data.fingerprint, options.images, options.batch_size],
                    "views": VIEWS,
                    "by": options.by,
                    "device": device_name(device),
                },
                on_trial=lambda: on_trial(next(done), total) if on_trial else None,
            )
            if options.vary:
                variant = find_variant(trials, options.focus or min(options.budgets), options.vary)
                cost, change = trials.cost(variant), variant.changes(trials.start)
                least = smallest(cost, variant.blocks)
            found = find_family(trials, variant, options.budgets, options.trials)
    family = [Member((cost.patch_tokens,) * cost.depth, 1.0, 0.0), *found]
    if found[-1].tokens != least:
        family.append(Member(least, cost.exact(least), None))
    return SearchResult(tuple(family), variant.options, made_by, cost, change)


def _settled(options: SearchOptions, model: nn.Module) -> SearchOptions:
    """The options with what schedules of this model are judged by."""
    is_classifier = int(getattr(model, "num_classes", 0)) > 1
    if options.by is None:
        return replace(options, by="kl" if is_classifier else "similarity")
    if options.by == "kl" and not is_classifier:
        raise UserError(
            "by 'kl' compares class probabilities, and the model gives none; use similarity."
        )
    return options


def calibration_data(
    spec: str,
    config: dict[str, Any],
    *,
    images: int = SearchOptions.images,
    split: str | None = None,
    **source: Any,
) -> ImageData:
    """`images` of the training split, spread evenly, or of the validation split where it is alone.

    source: further arguments of `create`, such as `data_dir`.

    Raises:
        UserError: there is no such data or split.
    """
    try:
        return create(spec, config, split=split or "train", limit=images, **source)
    except UserError:
        if split:
            raise
    return create(spec, config, split="validation", limit=images, **source)


def calibration_images(
    data: ImageData, options: SearchOptions, device: torch.device
) -> list[Tensor]:
    """`options.images` images of `data`, normalised, in batches on the device.

    Raises:
        UserError: the data holds fewer that can be read.
    """
    found: list[Tensor] = []
    missing = options.images
    for images, targets in batches(data, options.batch_size):
        readable = images[targets != UNREADABLE][:missing]
        missing -= len(readable)
        if len(readable):
            found.append(data.normalize(readable.to(device)))
        if missing == 0:
            return found
    raise UserError(
        f"the {data.split} split of {data.spec} has only {options.images - missing} images that "
        f"can be read, {options.images} are asked for; ask for fewer, or give more data."
    )


def by_threshold(
    model: nn.Module, images: Sequence[Tensor], budgets: Sequence[float], cost: Cost
) -> list[Member]:
    """For each budget the schedule of the lowest threshold that is within it by estimate.

    A token survives a block if its score there, and in all blocks before it, reaches the threshold.
    K is the mean number of survivors over the calibration images.
    """
    scores = torch.cat([significance_scores(model, batch) for batch in images], dim=1)  # (L, B, N)
    deciding = scores.cummin(0).values.flatten(1).sort(1).values.cpu()  # (L, B N)

    def schedule(threshold: float) -> Tokens:
        below = [int(torch.searchsorted(row, threshold)) for row in deciding]
        return cost.followed(round((len(deciding[0]) - n) / scores.shape[1]) for n in below)

    def fitting(budget: float) -> Tokens:
        low, high = 0.0, float(deciding.max()) * 1.01
        for _ in range(40):
            middle = (low + high) / 2
            if cost.estimate(schedule(middle)) > budget:
                low = middle
            else:
                high = middle
        return schedule(high)

    members = [Member(t, cost.exact(t), None) for t in {fitting(budget) for budget in budgets}]
    return sorted(members, key=lambda member: -member.ratio)


def trials_in(options: SearchOptions, pooling: PoolingOptions, depth: int) -> int:
    """How many trials there are at most."""
    variants = sum(map(len, moves(Variant(pooling), depth, options.vary)))
    return (1 + variants if options.vary else 0) + len(set(options.budgets)) * options.trials


def _check_reachable(budget: float, least: float, cost: Cost, timing: BenchOptions | None) -> None:
    if budget >= least:
        return
    method = cost.options.method
    if timing is not None:
        raise UserError(
            f"speedup {1 / budget:g} can't be reached; the fastest schedule of method {method} is "
            f"{1 / least:.2f}x as fast as this model by forecast."
        )
    raise UserError(
        f"budget {budget:.3g} can't be reached; the smallest that method {method} reaches on this "
        f"model is {least:.3f}."
    )
