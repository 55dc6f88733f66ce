"""`pool` and `unpool`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tpcli.errors import TpcliError, UserError
from tpcli.options import PoolingOptions, options_from_dict, pooling_options
from tpcli.schedule import Schedule, parse

from . import head
from .families import FAMILIES
from .layer import TokenPooling, pooled_forward

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class PoolingSpec:
    """How a model is pooled; remembered on the model and in its `config.json`."""

    schedule: Schedule
    options: PoolingOptions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the `token_pooling` key of `config.json`."""
        return {
            "format": "tpcli-pooling/1",
            "schedule": self.schedule.spec,
            "patch_tokens": self.schedule.patch_tokens,
            "tokens": list(self.schedule.tokens),
            "method": self.options.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PoolingSpec:
        """What `to_dict` wrote.

        Raises:
            UserError: the values are not what `to_dict` writes.
        """
        try:
            schedule = Schedule(
                tuple(values["tokens"]), int(values["patch_tokens"]), str(values["schedule"])
            )
            return cls(schedule, options_from_dict(values["method"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"config.json has a token_pooling that can't be read: {error}.") from None


def pooling_spec(model: nn.Module) -> PoolingSpec | None:
    """How `model` is pooled, or None."""
    return vars(model).get("token_pooling_spec")


def patch_tokens(model: nn.Module) -> int:
    """N_0: the patch tokens that enter block 0 at the model's own image size."""
    return int(model.patch_embed.num_patches)  # type: ignore[union-attr, arg-type]


def check_supported(model: nn.Module) -> None:
    """Raise unless `pool` can work on this model.

    Raises:
        UserError: one sentence that says why not.
    """
    if not isinstance(model, VisionTransformer | Eva):
        raise UserError(
            f"{type(model).__name__} is no Vision Transformer that can be pooled; "
            "use a timm model of class VisionTransformer, VisionTransformerDistilled or Eva."
        )
    for block in model.blocks:
        if type(block) not in FAMILIES:
            raise UserError(f"blocks of class {type(block).__name__} can't be pooled.")
    if isinstance(model, Eva) and model.rope is not None:
        raise UserError(
            f"{type(model).__name__} with rotary position embeddings can't be pooled yet."
        )
    head.check_head(model)


def pool(
    model: ModelT,
    schedule: str | Sequence[int] | Schedule,
    method: str | PoolingOptions | None = None,
    **options: Any,
) -> ModelT:
    """Insert pooling layers into a timm Vision Transformer, in place, and return it.

    Parameters and state_dict keys stay as they are. A model that is pooled already is pooled anew.

    Args:
        schedule: a spec such as "flops:0.58" or "r:13", patch tokens per block, or a Schedule.
        method: a name in the registry, or complete options.
        options: fields of `PoolingOptions`; what is left out takes the method's defaults.

    Raises:
        UserError: the model, the schedule or an option can't be used; names it.
    """
    check_supported(model)
    resolved = resolve(model, schedule, method, **options)
    chosen, plan = resolved.options, resolved.schedule
    _check_options(model, chosen)
    unpool(model)
    if plan.pools:
        head.install(model)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        if plan.tokens[i] == plan.patch_tokens:
            continue
        _install(model, block, chosen, plan.tokens_in(i), plan.tokens[i])
    if plan.pools:
        model.forward_intermediates = forward_intermediates_refused  # type: ignore[assignment]
    model.token_pooling_spec = resolved  # type: ignore[assignment]
    return model


def resolve(
    model: nn.Module,
    schedule: str | Sequence[int] | Schedule,
    method: str | PoolingOptions | None = None,
    **options: Any,
) -> PoolingSpec:
    """Turn what the user asked for into tokens per block and complete options for this model."""
    depth, tokens = len(model.blocks), patch_tokens(model)  # type: ignore[arg-type]
    if isinstance(method, PoolingOptions):
        chosen = method
    else:
        chosen = pooling_options(method, **options)
    if isinstance(schedule, str):
        from tpcli.budget import solve_budget

        schedule = parse(schedule, tokens, depth, partial(solve_budget, model, chosen))
        if schedule.method and method is None and not any(v is not None for v in options.values()):
            chosen = options_from_dict(schedule.method)
    elif not isinstance(schedule, Schedule):
        schedule = Schedule(tuple(schedule), tokens)
    if len(schedule.tokens) != depth:
        raise UserError(
            f"schedule {schedule.name!r} has {len(schedule.tokens)} numbers, "
            f"the model has {depth} blocks."
        )
    if schedule.patch_tokens != tokens:
        schedule = Schedule(schedule.tokens, tokens, schedule.spec, schedule.method)
    if chosen.position is None:
        has_place = all(FAMILIES[type(b)].halves for b in model.blocks)  # type: ignore[union-attr]
        chosen = replace(chosen, position="attention" if has_place else "block")
    return PoolingSpec(schedule, chosen)


def unpool(model: ModelT) -> ModelT:
    """Take all pooling layers out again; the model behaves exactly as before `pool`."""
    for block in getattr(model, "blocks", ()):
        layer = getattr(block, "token_pooling", None)
        if layer is None:
            continue
        layer.detach_hooks()
        del block.token_pooling
        vars(block).pop("forward", None)
    if pooling_spec(model) is not None:
        head.uninstall(model)
        vars(model).pop("forward_intermediates", None)
        del model.token_pooling_spec
    return model


@contextmanager
def unpooled(model: nn.Module) -> Iterator[None]:
    """The model without its pooling, in the body only."""
    spec = pooling_spec(model)
    unpool(model)
    try:
        yield
    finally:
        if spec is not None:
            pool(model, spec.schedule, spec.options)


def _install(
    model: nn.Module, block: nn.Module, options: PoolingOptions, tokens_in: int, tokens_out: int
) -> None:
    family = FAMILIES[type(block)]
    attention = family.attention(block)
    width = attention.head_dim if options.metric == "keys" else model.embed_dim
    layer = TokenPooling(
        options,
        family,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        prefix_tokens=int(model.num_prefix_tokens),  # type: ignore[arg-type]
        channels=int(width),  # type: ignore[arg-type]
    )
    device = next(block.parameters()).device
    layer.to(device).train(block.training)
    layer.attach_hooks(attention)
    block.token_pooling = layer
    block.forward = partial(pooled_forward, block)  # type: ignore[method-assign]


def _check_options(model: nn.Module, options: PoolingOptions) -> None:
    if options.weights == "class" and getattr(model, "cls_token", None) is None:
        raise UserError(
            "--weights class needs a class token, which this model has not; "
            "use size, significance or uniform."
        )
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type, union-attr]
        family = FAMILIES[type(block)]
        if options.position == "attention" and family.halves is None:
            raise UserError(
                f"--position attention is not there in block {i}: {type(block).__name__} runs "
                "attention and MLP side by side; use --position block."
            )


def forward_intermediates_refused(*args: Any, **kwargs: Any) -> Any:
    """Stands in for `forward_intermediates` of a pooled model."""
    raise TpcliError(
        "forward_intermediates needs one token per patch in every block, which a pooled model has "
        "not; unpool(model) first, or read tpcli.trace(model)."
    )
