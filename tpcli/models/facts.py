"""Facts of timm's architectures, from models without weights.

Rebuild the file with `python -m tpcli.models.facts > tpcli/models/architectures.json`.
"""

from __future__ import annotations

import json
from typing import Any

import timm
import torch
from timm.models import is_model_pretrained
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tpcli.errors import UserError
from tpcli.surgery import check_supported
from tpcli.surgery.families import FAMILIES
from tpcli.surgery.geometry import input_size, patch_tokens

MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "deit",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "naflexvit",
)
"""Modules of timm whose architectures are Vision Transformers of the supported classes."""
NORM_FLOPS = 5
"""Per element of a layer norm with weights, as fvcore has it."""


def names() -> list[str]:
    """Names of all architectures in `MODULES`."""
    return sorted(name for module in MODULES for name in timm.list_models(module=module))


def facts_of(name: str) -> dict[str, Any] | None:
    """The fields of one `Architecture`, or None where it can't be pooled; no weights are made."""
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    try:
        check_supported(model)
    except UserError:
        return None
    _, height, width = input_size(model)
    return {
        "name": name,
        "model_class": type(model).__name__,
        "params": sum(p.numel() for p in model.parameters()),
        "image_size": (height, width),
        "blocks": len(model.blocks),
        "patch_tokens": patch_tokens(model),
        "prefix_tokens": int(model.num_prefix_tokens),
        "flops": closed_form_flops(model),
        "pretrained": is_model_pretrained(name),
    }


def closed_form_flops(model: Any) -> int | None:
    """FLOPs of one image from the shapes of the weights: linear layers, attention and norms.

    None where the patch embedding is more than one convolution, or the class is another.
    """
    if not isinstance(model, VisionTransformer | Eva):
        return None
    stem: Any = model.patch_embed
    blocks: Any = model.blocks
    if not isinstance(stem.proj, nn.Conv2d) or hasattr(stem, "backbone"):
        return None
    patches = patch_tokens(model)
    tokens = patches + int(model.num_prefix_tokens)
    total = patches * stem.proj.weight.numel()
    for block in blocks:
        total += tokens * _per_token(block)
        family = FAMILIES[type(block)]
        attention: Any = family.attention(block)
        branches = len(block.attns) if hasattr(block, "attns") else 1
        queries_and_values = 3 if hasattr(attention, "sub_norm") else 2  # differential: twice QK^T
        width = attention.num_heads * attention.head_dim
        if hasattr(attention, "sub_norm"):
            width *= 2
        total += branches * queries_and_values * tokens**2 * int(width)
    total += tokens * _per_token(model.norm)
    pool: Any = getattr(model, "attn_pool", None)
    if pool is not None:
        read = tokens if getattr(model, "pool_include_prefix", True) else patches
        kv = getattr(pool, "kv", None)
        if kv is not None:
            total += read * _per_token(kv) + 2 * read * int(model.embed_dim)
            total += _per_token(pool) - _per_token(kv)
        else:
            total += 2 * read**2 * int(model.embed_dim)
    heads = (getattr(model, name, None) for name in ("fc_norm", "head", "head_dist"))
    return total + sum(_per_token(head) for head in heads if head is not None)


def _per_token(module: nn.Module) -> int:
    """Multiply-adds that the linear layers and norms of `module` spend on one token."""
    linear = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    norms = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.LayerNorm))
    return linear + NORM_FLOPS * norms


if __name__ == "__main__":
    rows = ",\n".join(json.dumps(facts) for facts in map(facts_of, names()) if facts)
    print(f'{{"timm": "{timm.__version__}", "architectures": [\n{rows}\n]}}')
