"""`search`: a whole family of schedules for one model and method, from a few unlabelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpcli.cost import CostModel
from tpcli.data import UNREADABLE, ImageData, batches, create
from tpcli.devices import borrowed, explain_out_of_memory, pick_device
from tpcli.errors import UserError
from tpcli.models import weights_hash
from tpcli.options import PoolingOptions
from tpcli.profile import DEFAULT, Shape
from tpcli.schedule import Tokens
from tpcli.surgery import unpooled, with_place
from tpcli.surgery.head import last_pooling_is_free
from tpcli.version import __version__

from .checkpoint import Memory
from .objectives import Damage
from .optimise import fitted, optimise
from .result import Member, SearchResult
from .thresholds import Thresholds
from .views import VIEWS, random_views

OBJECTIVES = ("kl", "reconstruction", "significance")
BUDGETS = (0.75, 0.55, 0.4, 0.28)
"""Where the family is searched for; budgets between them are interpolated."""
SURE = 2.0
"""Standard errors by which a searched schedule has to beat the default one."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    by: what a schedule is judged by. images: number of calibration images. budgets: shares of the
    base FLOPs at which the family is searched for. trials: schedules that are tried per budget.
    last_free: leave one patch token for the last block's MLP, in models whose answers don't depend
    on it (`surgery.head.last_pooling_is_free`).

    Raises:
        UserError: a value is not among those accepted.
    """

    by: str = "kl"
    images: int = 256
    budgets: tuple[float, ...] = BUDGETS
    trials: int = 16
    last_free: bool = False
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.by not in OBJECTIVES:
            raise UserError(f"by {self.by!r} is unknown; use one of {', '.join(OBJECTIVES)}.")
        for name, value in (("images", self.images), ("trials", self.trials)):
            if value < 1:
                raise UserError(f"--{name} {value} is below 1; use 1 or more.")
        for budget in self.budgets:
            if not 0 < budget <= 1:
                raise UserError(
                    f"budget {budget:g} is out of range; use a share of the FLOPs in (0, 1]."
                )


def budgets_with(budget: float, apart: float = 0.06) -> tuple[float, ...]:
    """The usual budgets, and `budget` in place of those that are near it."""
    usual = [b for b in BUDGETS if abs(b - budget) >= apart]
    return tuple(sorted([budget, *usual], reverse=True))


def search(
    model: nn.Module,
    data: ImageData,
    pooling: PoolingOptions,
    options: SearchOptions | None = None,
    *,
    name: str = "",
    checkpoint: Path | None = None,
    on_trial: Callable[[int, int], None] | None = None,
    on_found: Callable[[SearchResult], None] | None = None,
) -> SearchResult:
    """Search tokens per block for `model`, pooled by `pooling`, at several budgets at once.

    From the smallest budget to the largest: find the profile that does least damage, with nowhere
    fewer tokens than at the budget before. The model is left as it was, also by an exception.

    Args:
        data: calibration images, the first `options.images` of them; labels are not used.
        name: what the model is called in `made_by`.
        checkpoint: file that remembers what was measured; removed when the search is done.
        on_trial: called with trials done and trials in all.
        on_found: called with the result while `checkpoint` is still there, to write it down.

    Raises:
        UserError: there are fewer images than asked for, or the smallest budget is out of reach.
    """
    options = options or SearchOptions()
    device = pick_device(options.device)
    made_by = {
        "command": "tpcli schedule",
        "version": __version__,
        "model": name,
        "weights": weights_hash(model),
        "data": data.spec,
        "split": data.split,
        **asdict(options),
        "budgets": list(options.budgets),
    }
    images = calibration_images(data, options, device)
    memory = None
    with (
        borrowed(model, device),
        unpooled(model),
        explain_out_of_memory(options.batch_size),
    ):
        pooling = with_place(model, pooling)
        if options.last_free:
            _check_last_is_free(model, pooling)
        cost = CostModel(model, pooling, last_free=options.last_free)
        smallest = _smallest(cost)
        _check_reachable(min(options.budgets), smallest, cost, pooling)
        if options.by == "significance":
            found = _by_threshold(model, images, options.budgets, cost)
        else:
            damage = Damage(model, pooling, random_views(images), options.by)
            others = Damage(model, pooling, random_views(images, seed=1), options.by)
            made_by["views"] = VIEWS
            identity = {**made_by, "images": data.fingerprint, "method": pooling.to_dict()}
            memory = Memory(damage.of, checkpoint, identity)
            found = _by_damage(memory, others, options, cost, smallest, on_trial)
    full = Member((cost.patch_tokens,) * cost.depth, 1.0, 0.0)
    ends = () if found[-1].tokens == smallest else (smallest,)
    last = [Member(tokens, cost.exact(tokens), None) for tokens in ends]
    result = SearchResult((full, *found, *last), pooling, made_by, cost)
    if on_found is not None:
        on_found(result)
    if memory is not None:
        memory.forget()
    return result


def calibration_data(
    spec: str,
    config: dict[str, Any],
    *,
    images: int = SearchOptions.images,
    split: str | None = None,
    data_dir: str | None = None,
    download: bool = False,
) -> ImageData:
    """`images` of the training split, spread evenly, or of the validation split where it is alone.

    Raises:
        UserError: there is no such data or split.
    """
    for name in (split,) if split else ("train", "validation"):
        try:
            return create(
                spec, config, split=name, data_dir=data_dir, download=download, limit=images
            )
        except UserError:
            if split or name == "validation":
                raise
    raise AssertionError


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


def _by_damage(
    memory: Memory,
    others: Damage,
    options: SearchOptions,
    cost: CostModel,
    smallest: Tokens,
    on_trial: Callable[[int, int], None] | None,
) -> list[Member]:
    """From the smallest budget up, each schedule above the one before; returned falling.

    Where what was found is not better than the default family's schedule by more than noise, on
    `others` that took no part in finding it, the default stays.
    """
    budgets = sorted(set(options.budgets))
    total = len(budgets) * options.trials
    floor = smallest
    shapes: list[Shape] = []
    members: list[Member] = []
    for i, budget in enumerate(budgets):
        done = i * options.trials

        def damage(tokens: Tokens) -> float:
            nonlocal done
            value = memory(tokens)
            done += 1
            if on_trial is not None:
                on_trial(done, total)
            return value

        default = fitted(DEFAULT, budget, cost, floor)
        shape, best, lost = optimise(
            budget, cost, damage, floor=floor, known=shapes, trials=options.trials
        )
        gain = None if best == default else gained(others.each(default), others.each(best))
        if gain is not None and gain[0] < SURE * gain[1]:
            shape, best, lost = DEFAULT, default, memory(default)
        shapes, floor = [shape], best
        members.append(Member(best, cost.exact(best), lost, best != default))
    return members[::-1]


def gained(before: Tensor, after: Tensor) -> tuple[float, float]:
    """How much less damage each image takes on average, and the standard error: (M,), (M,)."""
    less = before - after
    return float(less.mean()), float(less.std() / len(less) ** 0.5)


def _by_threshold(
    model: nn.Module, images: Sequence[Tensor], budgets: Sequence[float], cost: CostModel
) -> list[Member]:
    thresholds = Thresholds(model, images)
    found = {thresholds.fit_budget(budget, cost) for budget in budgets}
    members = [Member(tokens, cost.exact(tokens), None) for tokens in found]
    return sorted(members, key=lambda member: -member.ratio)


def _smallest(cost: CostModel) -> Tokens:
    """One token after the first block, or as few as the method can make."""
    return cost.followed([1] * cost.depth)


def _check_last_is_free(model: nn.Module, pooling: PoolingOptions) -> None:
    if not last_pooling_is_free(model, pooling.position):
        raise UserError(
            "last_free changes the answers of this model, whose head reads patch tokens or whose "
            "last pooling comes before what its answers are made of; leave it out."
        )


def _check_reachable(
    budget: float, smallest: Tokens, cost: CostModel, pooling: PoolingOptions
) -> None:
    ratio = cost.exact(smallest)
    if budget < ratio:
        raise UserError(
            f"budget {budget:g} can't be reached; the smallest that method {pooling.method} "
            f"reaches on this model is {ratio:.3f}."
        )
