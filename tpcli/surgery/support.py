"""Which models can be pooled, and what to say of those that can't."""

from __future__ import annotations

from timm.models._features import FeatureHookNet, FeatureListNet
from torch import nn

from tpcli.errors import UserError

from .families import FAMILIES
from .geometry import CLASSES, vits_in
from .head import check_head


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
