"""From a schedule spec to a pooled model: tokens per block, complete options, insertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from tpcli.config.options import PoolingOptions, options_from_dict, pooling_options, replaced
from tpcli.config.schedule import Schedule, file_options, parse
from tpcli.errors import UserError
from tpcli.surgery import PoolingSpec, check_supported, find, insert, with_place
from tpcli.surgery.geometry import patch_tokens

from .budget import solve_budget

ModelT = TypeVar("ModelT", bound=nn.Module)


def pool(
    model: ModelT,
    schedule: str | Sequence[int] | Schedule,
    method: str | PoolingOptions | None = None,
    **options: Any,
) -> ModelT:
    """Insert pooling layers into the timm Vision Transformer that `model` is or holds, in place.

    Returns `model`. Parameters and state_dict keys stay as they are. A model that is pooled already
    is pooled again.

    Args:
        schedule: a spec such as "flops:0.58" or "r:13", patch tokens per block, or a Schedule.
        method: a name in the registry, or options that say more than a name.
        options: fields of `PoolingOptions`; what is left out takes the method's defaults.

    Raises:
        UserError: the model, the schedule or an option can't be used; names it.
    """
    return insert(model, resolve(model, schedule, method, **options))


def resolve(
    model: nn.Module,
    schedule: str | Sequence[int] | Schedule,
    method: str | PoolingOptions | None = None,
    **options: Any,
) -> PoolingSpec:
    """Tokens per block and complete options for this model.

    Where no method is named, that of a schedule file counts; options that are given replace its.

    Raises:
        UserError: as `pool`.
    """
    check_supported(model)
    model = find(model)
    depth, tokens = len(model.blocks), patch_tokens(model)  # type: ignore[arg-type]
    of_file = schedule.options if isinstance(schedule, Schedule) else file_options(schedule)
    if isinstance(method, PoolingOptions):
        chosen = replaced(method, **options)
    elif method is None and of_file:
        chosen = options_from_dict(of_file, **options)
    else:
        chosen = pooling_options(method, **options)
    chosen = with_place(model, chosen)
    if isinstance(schedule, str):
        schedule = parse(schedule, tokens, depth, partial(solve_budget, model, chosen))
    elif not isinstance(schedule, Schedule):
        schedule = Schedule(tuple(schedule), tokens)
    if len(schedule.tokens) != depth:
        raise UserError(
            f"schedule {schedule.name!r} has {len(schedule.tokens)} numbers, "
            f"the model has {depth} blocks."
        )
    if schedule.patch_tokens != tokens:
        schedule = replace(schedule, patch_tokens=tokens)
    return PoolingSpec(schedule, chosen)
