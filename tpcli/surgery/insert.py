"""Pooling layers into a model and out of it again, as a resolved spec says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from timm.models._features import FeatureHookNet, FeatureListNet
from torch import nn

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule
from tpcli.errors import UserError
from tpcli.pooling import get_method

from . import head
from .attention import check_shows_attention
from .families import FAMILIES
from .geometry import CLASSES, patch_grid, patch_tokens, vits_in
from .head import check_head
from .intermediates import forward_intermediates
from .layer import TokenPooling, pooled_forward
from .patching import override, restore, write_pooling_of_wrapped
from .spec import PoolingSpec, pooling_spec


def find(model: nn.Module) -> nn.Module:
    """The timm Vision Transformer that `model` is or holds, such as `clip.visual.trunk`.

    Raises:
        UserError: it holds none, or several; names their places.
    """
    inside = vits_in(model)
    if len(inside) == 1:
        return next(iter(inside.values()))
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if inside:
        places = ", ".join(inside)
        raise UserError(
            f"{kind} holds {len(inside)} timm Vision Transformers; use one of them, which are its "
            f"{places}."
        )
    raise UserError(
        f"{kind} is no Vision Transformer that can be pooled; use a model of timm of class "
        f"VisionTransformerDistilled, {', '.join(c.__name__ for c in CLASSES[:-1])} "
        f"or {CLASSES[-1].__name__}, or one that holds such a model."
    )


def check_supported(model: nn.Module) -> None:
    """Raise unless `pool` can work on this model, or on the one that it holds.

    Raises:
        UserError: one sentence that says why not.
    """
    if isinstance(model, FeatureListNet | FeatureHookNet):
        raise UserError(
            f"timm's {type(model).__name__} takes a model apart, so it can't be pooled; leave its "
            "feature_cls out."
        )
    vit = find(model)
    if list(vits_in(model)) in (["module"], ["_orig_mod"]):
        raise UserError(
            f"the model is wrapped in {type(model).__name__}; pool the model itself, its attribute "
            f"{next(iter(vits_in(model)))}, then wrap it."
        )
    for block in vit.blocks:  # type: ignore[union-attr]
        if type(block) not in FAMILIES:
            raise UserError(f"blocks of class {type(block).__name__} can't be pooled.")
    check_head(vit)


ModelT = TypeVar("ModelT", bound=nn.Module)


def insert(model: ModelT, spec: PoolingSpec) -> ModelT:
    """Put pooling layers into the timm Vision Transformer that `model` is or holds, in place.

    Returns `model`. Parameters and state_dict keys stay as they are. A model that is pooled already
    is pooled anew.

    spec: tokens per block and options; remembered with their place (`with_place`).

    Raises:
        UserError: the model, the schedule or an option can't be used; names it.
    """
    check_supported(model)
    vit = find(model)
    plan, options = spec.schedule, with_place(vit, spec.options)
    _check_options(vit, options)
    _check_counts(vit, plan, options)
    before = pooling_spec(vit)
    unpool(vit)
    try:
        _insert(vit, PoolingSpec(plan, options))
    except BaseException:
        unpool(vit)
        if before is not None:
            _insert(vit, before)
        raise
    write_pooling_of_wrapped()
    return model


def _insert(model: nn.Module, spec: PoolingSpec) -> None:
    plan, options = spec.schedule, spec.options
    model.token_pooling_spec = spec  # type: ignore[assignment]
    if not plan.pools:
        return
    head.install(model)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        if plan.tokens[i] == plan.patch_tokens:
            continue
        depth = i / len(blocks)
        _install(model, block, options, plan.tokens_in(i), plan.tokens[i], depth)
    override(model, "forward_intermediates", forward_intermediates)
    if hasattr(type(model), "set_input_size"):
        override(model, "set_input_size", set_input_size)


def with_place(model: nn.Module, options: PoolingOptions) -> PoolingOptions:
    """The options with a place for pooling in this model's blocks: inside, where there is one."""
    if options.position is not None:
        return options
    has_place = all(FAMILIES[type(b)].halves for b in model.blocks)  # type: ignore[union-attr]
    return replace(options, position="attention" if has_place else "block")


def unpool(model: ModelT) -> ModelT:
    """Take all pooling layers out again; the model behaves exactly as before `pool`."""
    for vit in vits_in(model).values():
        for block in vit.blocks:  # type: ignore[union-attr]
            if getattr(block, "token_pooling", None) is not None:
                _uninstall(block)
        if pooling_spec(vit) is not None:
            head.uninstall(vit)
            restore(vit, "forward_intermediates", "set_input_size")
            del vit.token_pooling_spec
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


def set_input_size(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The model's own `set_input_size`; its blocks keep the same shares of their tokens."""
    spec = pooling_spec(model)
    assert spec is not None
    schedule = spec.schedule
    unpool(model)
    try:
        type(model).set_input_size(model, *args, **kwargs)  # type: ignore[attr-defined]
        schedule = schedule.resized(patch_tokens(model))
    finally:
        insert(model, replace(spec, schedule=schedule))


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
            "`weights=class` needs a class token, which this model has not; "
            "use size, significance or uniform."
        )
    if options.needs_scores or options.metric == "keys":
        check_shows_attention(model)
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        family = FAMILIES[type(block)]
        if options.position == "attention" and family.halves is None:
            raise UserError(
                f"`position=attention` is not there in block {i}: {type(block).__name__} runs "
                "attention and MLP side by side; use `position=block`."
            )


def _class_token(model: nn.Module) -> Any:
    return getattr(getattr(model, "embeds", model), "cls_token", None)
