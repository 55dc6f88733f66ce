"""Small models with weights that make every part of them matter, and images for them."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 3,
    "num_classes": 10,
}
"""64 patch tokens, 4 blocks."""

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "registers": {"reg_tokens": 4},
    "average": {"global_pool": "avg"},
    "average, no class token": {"global_pool": "avg", "class_token": False},
    "average and max": {"global_pool": "avgmax"},
    "maximum": {"global_pool": "max"},
    "map": {"global_pool": "map"},
    "map, no class token": {"global_pool": "map", "class_token": False},
    "LayerScale": {"init_values": 0.1},
    "query and key norm": {"qk_norm": True},
    "pre-norm": {"pre_norm": True},
    "ResPostBlock": {"block_fn": "ResPostBlock"},
    "ParallelScalingBlock": {"block_fn": "ParallelScalingBlock"},
    "DiffParallelScalingBlock": {"block_fn": "DiffParallelScalingBlock"},
    "ParallelThingsBlock": {"block_fn": "ParallelThingsBlock"},
    "Eva": {"name": "eva02_tiny_patch14_224", "use_rot_pos_emb": False, "dynamic_img_size": False},
    "BEiT-like Eva, average": {
        "name": "eva_giant_patch14_224",
        "use_rot_pos_emb": False,
        "global_pool": "avg",
    },
}
"""Kinds of model that pooling supports, as arguments of `tiny_vit`."""

SIDE_BY_SIDE = ("ParallelScalingBlock", "DiffParallelScalingBlock")
"""Variants without a place between attention and MLP."""

POSITIONS = [
    (variant, position)
    for variant in VARIANTS
    for position in ("block", "attention")
    if position == "block" or variant not in SIDE_BY_SIDE
]
"""Every variant with every position that it has."""


def tiny_vit(name: str = "vit_tiny_patch16_224", *, seed: int = 0, **arguments: Any) -> nn.Module:
    """A small model in eval mode, its weights drawn anew by `scramble`."""
    from timm.models import vision_transformer

    if "block_fn" in arguments:
        arguments["block_fn"] = getattr(vision_transformer, arguments["block_fn"])
    model: nn.Module = timm.create_model(name, **{**SMALL, **arguments})
    return scramble(model, seed).eval()


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters at a scale at which tokens differ, attention is uneven, biases count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.2 * noise)
    return model


def images(batch: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    """(B, 3, size, size), smooth enough that neighbouring patches are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, size // 4, size // 4, generator=generator)
    fine = torch.randn(batch, 3, size, size, generator=generator)
    return nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.3 * fine


def tokens(batch: int, n: int, channels: int, seed: int = 0, groups: int = 8) -> Tensor:
    """(B, N, C) in groups, as the tokens of images are."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(batch, groups, channels, generator=generator)
    which = torch.randint(groups, (batch, n, 1), generator=generator).expand(-1, -1, channels)
    return centres.gather(1, which) + torch.randn(batch, n, channels, generator=generator)
