"""Pooling layers into a model and out of it again, as a resolved spec says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from tpcli.errors import TpcliError, UserError
from tpcli.options import PoolingOptions, options_from_dict
from tpcli.pooling import get_method
from tpcli.schedule import Schedule

from . import head
from .families import FAMILIES
from .forward import pooled_forward
from .geometry import patch_grid
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


def insert(model: ModelT, spec: PoolingSpec) -> ModelT:
    """Put pooling layers into a timm Vision Transformer, in place, and return it.

    Parameters and state_dict keys stay as they are. A model that is pooled already is pooled anew.

    spec: tokens per block and complete options (`with_place`).

    Raises:
        UserError: the model, the schedule or an option can't be used; names it.
    """
    check_supported(model)
    plan, options = spec.schedule, spec.options
    _check_options(model, options)
    _check_counts(model, plan, options)
    unpool(model)
    model.token_pooling_spec = spec  # type: ignore[assignment]
    if not plan.pools:
        return model
    head.install(model)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        if plan.tokens[i] == plan.patch_tokens:
            continue
        depth = i / len(blocks)
        _install(model, block, options, plan.tokens_in(i), plan.tokens[i], depth)
    model.forward_intermediates = forward_intermediates_refused  # type: ignore[assignment]
    return model


def with_place(model: nn.Module, options: PoolingOptions) -> PoolingOptions:
    """The options with a place for pooling in this model's blocks: inside, where there is one."""
    if options.position is not None:
        return options
    has_place = all(FAMILIES[type(b)].halves for b in model.blocks)  # type: ignore[union-attr]
    return replace(options, position="attention" if has_place else "block")


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
    """The model without its pooling, in the body only; what the body pools, goes after it."""
    spec = pooling_spec(model)
    unpool(model)
    try:
        yield
    finally:
        unpool(model)
        if spec is not None:
            insert(model, spec)


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
