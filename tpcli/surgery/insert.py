"""Pooling layers into a model and out of it again, as a resolved spec says."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
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
from .geometry import (
    CLASSES,
    POOLING_NAME,
    PoolingSpec,
    blocks_of,
    patch_grid,
    patch_tokens,
    pooling_spec,
    vits_in,
)
from .head import check_head
from .intermediates import forward_intermediates
from .layer import TokenPooling, pooled_forward
from .patching import call_original, override, own_method, restore


def find(model: nn.Module) -> nn.Module:
    """The timm Vision Transformer that `model` is or holds, such as `clip.visual.trunk`.

    Raises:
        UserError: it holds none, or several; names the attributes that hold them.
    """
    inside = vits_in(model)
    if len(inside) == 1:
        return next(iter(inside.values()))
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if inside:
        attributes = ", ".join(inside)
        raise UserError(
            f"{kind} holds {len(inside)} timm Vision Transformers; use one of them, which are its "
            f"{attributes}."
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
    place = next(iter(vits_in(model)))
    if place in ("module", "_orig_mod"):
        raise UserError(
            f"the model is wrapped in {type(model).__name__}; pool the model itself, its attribute "
            f"{place}, then wrap it."
        )
    for i, block in enumerate(blocks_of(vit)):
        if type(block) not in FAMILIES:
            inside = any(type(module) in FAMILIES for module in block.modules())
            is_sharded = any(base in FAMILIES for base in type(block).__mro__)
            advice = "; pool the model first, then wrap or shard its blocks"
            raise UserError(
                f"blocks.{i} of class {type(block).__name__} can't be pooled"
                f"{advice if inside or is_sharded else ''}."
            )
    check_head(vit)


ModelT = TypeVar("ModelT", bound=nn.Module)


def insert(model: ModelT, spec: PoolingSpec) -> ModelT:
    """Put pooling layers into the timm Vision Transformer that `model` is or holds, in place.

    Returns `model`. Parameters and state_dict keys stay as they are. A model that is pooled already
    is pooled again.

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
    for wrapper in model.modules():
        if getattr(wrapper, "timm_model", None) is vit and hasattr(wrapper, "save_pretrained"):
            override(wrapper, "save_pretrained", save_pretrained)
    return model


def save_pretrained(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained` of transformers' wrapper of timm models, which writes the pooling too."""
    spec = pooling_spec(wrapper.timm_model)
    wrapper.config.token_pooling = None if spec is None else spec.to_dict()
    return call_original(wrapper, "save_pretrained", *args, **kwargs)


def _insert(model: nn.Module, spec: PoolingSpec) -> None:
    plan, options = spec.schedule, spec.options
    model.token_pooling_spec = spec  # type: ignore[assignment]
    if not plan.pools:
        return
    head.install(model)
    blocks = blocks_of(model)
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
    blocks = blocks_of(model)
    has_place = all(FAMILIES[type(block)].halves for block in blocks)
    own = [i for i, block in enumerate(blocks) if own_method(block, "forward")]
    if has_place and own:
        warnings.warn(
            f"blocks.{own[0]} has a forward of its own, which is kept, so tokens are pooled after "
            "the blocks (`position=block`) and not inside them.",
            stacklevel=2,
        )
    return replace(options, position="attention" if has_place and not own else "block")


def unpool(model: ModelT) -> ModelT:
    """Take all pooling layers out again; the model behaves exactly as before `pool`."""
    for vit in vits_in(model).values():
        for block in blocks_of(vit):
            if getattr(block, POOLING_NAME, None) is not None:
                _uninstall(block)
        if pooling_spec(vit) is not None:
            head.uninstall(vit)
            restore(vit, "forward_intermediates", "set_input_size")
            del vit.token_pooling_spec
    for module in model.modules():
        if hasattr(module, "timm_model"):
            restore(module, "save_pretrained")
    return model


@contextmanager
def unpooled(model: nn.Module) -> Iterator[None]:
    """The model without its pooling, in the body only; what the body pools, goes after it."""
    specs = [(vit, pooling_spec(vit)) for vit in vits_in(model).values()]
    unpool(model)
    try:
        yield
    finally:
        unpool(model)
        for vit, spec in specs:
            if spec is not None:
                insert(vit, spec)


def set_input_size(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """The model's own `set_input_size`; its blocks keep the same shares of their tokens."""
    spec = pooling_spec(model)
    if spec is None:  # unpooled, while others had wrapped this method
        call_original(model, "set_input_size", *args, **kwargs)
        return
    schedule = spec.schedule
    unpool(model)
    try:
        model.set_input_size(*args, **kwargs)  # type: ignore[operator]
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
    if device.type != "meta" or not hasattr(model, "_hf_hook"):  # else its weights come and go
        layer.to(device)
    layer.train(block.training)
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
    for i, block in enumerate(blocks_of(model)):
        family, own = FAMILIES[type(block)], own_method(block, "forward")
        if options.attention_bias == "channel" and family.bias is not None:
            raise UserError(
                f"`attention_bias=channel` is not there in blocks.{i}: {type(block).__name__} "
                "adds a position bias, which is a mask already; use `attention_bias=mask`."
            )
        if options.position == "attention" and (family.halves is None or own):
            reason = "has a forward of its own" if own else "runs attention and MLP side by side"
            raise UserError(
                f"`position=attention` is not there in blocks.{i}: {type(block).__name__} {reason}"
                "; use `position=block`."
            )
        if options.proportional_attention and family.bias is None:
            _check_takes_mask(f"blocks.{i}", own)
    own = own_method(model, "forward_intermediates")
    if own is not None and not isinstance(own, MethodType):
        raise UserError(
            "the model has a forward_intermediates of its own, which is bound to its own blocks; "
            "remove it (del model.forward_intermediates) before pooling."
        )


def _check_takes_mask(name: str, forward: Callable[..., Any] | None) -> None:
    """Raise where a forward that others wrote can't be handed the sizes of tokens."""
    if forward is None:
        return
    try:
        inspect.signature(forward).bind(None, attn_mask=None)
    except TypeError:
        raise UserError(
            f"the forward that was put on {name} takes no attn_mask, which tells it the sizes of "
            "tokens; let it take one, or use `proportional_attention=False`."
        ) from None


def _class_token(model: nn.Module) -> Any:
    return getattr(getattr(model, "embeds", model), "cls_token", None)
