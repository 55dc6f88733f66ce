"""Which models can be pooled, and what to say of those that can't."""

from __future__ import annotations

from timm.models._features import FeatureHookNet, FeatureListNet
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from tpcli.errors import UserError

from .families import FAMILIES
from .geometry import vit_of
from .head import check_head

CLASSES = (VisionTransformer, Eva, Beit, VisionTransformerRelPos, NaFlexVit)


def check_supported(model: nn.Module) -> None:
    """Raise unless `pool` can work on this model.

    Raises:
        UserError: one sentence that says why not.
    """
    if isinstance(model, FeatureListNet | FeatureHookNet):
        raise UserError(
            f"timm's {type(model).__name__} takes a model apart, so it can't be pooled; leave its "
            "feature_cls out."
        )
    model = vit_of(model)
    if not isinstance(model, CLASSES):
        raise UserError(_why_not(model))
    for block in model.blocks:
        if type(block) not in FAMILIES:
            raise UserError(f"blocks of class {type(block).__name__} can't be pooled.")
    check_head(model)


def _why_not(model: nn.Module) -> str:
    """What to pool instead of a model that is no timm ViT, but may hold one."""
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    inside: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, CLASSES) and not any(name.startswith(f"{n}.") for n in inside):
            inside.append(name)
    if inside in (["module"], ["_orig_mod"]):
        return (
            f"the model is wrapped in {type(model).__name__}; pool the model itself, its attribute "
            f"{inside[0]}, then wrap it."
        )
    if len(inside) == 1:
        return f"{kind} is no timm Vision Transformer, but holds one; pool its {inside[0]} instead."
    return (
        f"{kind} is no Vision Transformer that can be pooled; use a model of timm of class "
        f"VisionTransformerDistilled, {', '.join(c.__name__ for c in CLASSES[:-1])} "
        f"or {CLASSES[-1].__name__}."
    )
