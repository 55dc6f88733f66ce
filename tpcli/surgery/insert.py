"""`pool` and `unpool`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from tpcli.errors import TpcliError, UserError
from tpcli.options import PoolingOptions, options_from_dict, pooling_options
from tpcli.pooling import get_method
from tpcli.schedule import Schedule, file_method, parse

from . import head
from .families import FAMILIES
from .forward import pooled_forward
from .layer import TokenPooling
from .overrides import override, restore
from .scores import check_shows_attention

CLASSES = (VisionTransformer, Eva, Beit, VisionTransformerRelPos, NaFlexVit)
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
            raise UserError(
                f"config.json has a token_pooling that can't be read: {error}."
            ) from None


def pooling_spec(model: nn.Module) -> PoolingSpec | None:
    """How `model` is pooled, or None."""
    return vars(model).get("token_pooling_spec")


def patch_tokens(model: nn.Module) -> int:
    """N_0: the patch tokens that enter block 0 at the model's own image size."""
    rows, columns = patch_grid(model)
    return rows * columns


def patch_grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches at the model's own image size."""
    if isinstance(model, NaFlexVit):  # takes any size; this is the one that it was trained for
        config: Any = model.pretrained_cfg
        _, height, width = config["input_size"]
        patch_height, patch_width = model.embeds.patch_size
        return height // patch_height, width // patch_width
    rows, columns = model.patch_embed.grid_size  # type: ignore[union-attr, misc]
    return int(rows), int(columns)


def check_supported(model: nn.Module) -> None:
    """Raise unless `pool` can work on this model.

    Raises:
        UserError: one sentence that says why not.
    """
    inner = getattr(model, "module", getattr(model, "_orig_mod", None))
    if isinstance(inner, nn.Module):
        raise UserError(
            f"the model is wrapped in {type(model).__name__}; pool the model itself, then wrap it."
        )
    if isinstance(model, FeatureGetterNet | FeatureListNet | FeatureHookNet):
        raise UserError(
            "a model made with features_only=True returns one token per patch, which a pooled "
            "model has not; create it without."
        )
    if not isinstance(model, CLASSES):
        raise UserError(
            f"{type(model).__name__} is no Vision Transformer that can be pooled; use a timm model "
            f"of class VisionTransformerDistilled, {', '.join(c.__name__ for c in CLASSES[:-1])} "
            f"or {CLASSES[-1].__name__}."
        )
    for block in model.blocks:
        if type(block) not in FAMILIES:
            raise UserError(f"blocks of class {type(block).__name__} can't be pooled.")
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
    _check_counts(model, plan, chosen)
    unpool(model)
    if plan.pools:
        head.install(model)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        if plan.tokens[i] == plan.patch_tokens:
            continue
        depth = i / len(blocks)
        _install(model, block, chosen, plan.tokens_in(i), plan.tokens[i], depth)
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
    """Turn what the user asked for into tokens per block and complete options for this model.

    Where no method is named, that of a schedule file counts; options that are given replace its.
    """
    depth, tokens = len(model.blocks), patch_tokens(model)  # type: ignore[arg-type]
    of_file = schedule.method if isinstance(schedule, Schedule) else file_method(schedule)
    if isinstance(method, PoolingOptions):
        chosen = method
    elif method is None and of_file:
        chosen = options_from_dict(of_file, **options)
    else:
        chosen = pooling_options(method, **options)
    if isinstance(schedule, str):
        from tpcli.budget import solve_budget

        schedule = parse(schedule, tokens, depth, partial(solve_budget, model, chosen))
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
        if getattr(block, "token_pooling", None) is None:
            continue
        _uninstall(block)
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
    model: nn.Module,
    block: nn.Module,
    options: PoolingOptions,
    tokens_in: int,
    tokens_out: int,
    depth: float,
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
        class_token=_class_token(model) is not None,
        grid=patch_grid(model),
        depth=depth,
        follows_positions=getattr(model, "rope", None) is not None or family.bias is not None,
    )
    device = next(block.parameters()).device
    layer.to(device).train(block.training)
    layer.attach_hooks(attention)
    if family.bias is not None:
        family.bias.attach(attention)
    block.token_pooling = layer
    override(block, "forward", pooled_forward)


def _uninstall(block: nn.Module) -> None:
    layer: TokenPooling = block.token_pooling  # type: ignore[assignment]
    layer.detach_hooks()
    if layer.family.bias is not None:
        layer.family.bias.detach(layer.family.attention(block))
    del block.token_pooling
    restore(block, "forward")


def _check_counts(model: nn.Module, plan: Schedule, options: PoolingOptions) -> None:
    """Raise where the method can't make as many tokens as the schedule asks for."""
    counts = get_method(options.method).counts
    if counts is None:
        return
    for i, k in enumerate(plan.tokens):
        n = plan.tokens_in(i)
        possible = counts(n, patch_grid(model))
        if k not in possible:
            near = sorted(sorted(possible, key=lambda p: abs(p - k))[:4], reverse=True)
            raise UserError(
                f"method {options.method} can't make {k} tokens out of {n} at block {i}; "
                f"nearest are {', '.join(map(str, near))}: write them as tokens:..., or let "
                "flops:... or tpcli schedule find some."
            )


def _check_options(model: nn.Module, options: PoolingOptions) -> None:
    if options.weights == "class" and _class_token(model) is None:
        raise UserError(
            "--weights class needs a class token, which this model has not; "
            "use size, significance or uniform."
        )
    if options.needs_scores or options.metric == "keys":
        check_shows_attention(model)
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        family = FAMILIES[type(block)]
        if options.position == "attention" and family.halves is None:
            raise UserError(
                f"--position attention is not there in block {i}: {type(block).__name__} runs "
                "attention and MLP side by side; use --position block."
            )


def _class_token(model: nn.Module) -> Any:
    return getattr(getattr(model, "embeds", model), "cls_token", None)


def forward_intermediates_refused(*args: Any, **kwargs: Any) -> Any:
    """Stands in for `forward_intermediates` of a pooled model."""
    raise TpcliError(
        "forward_intermediates needs one token per patch in every block, which a pooled model has "
        "not; unpool(model) first, or read tpcli.trace(model)."
    )
