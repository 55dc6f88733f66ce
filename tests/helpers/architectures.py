"""Small versions of timm's architectures, and what has to hold for each of them once pooled."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

import tpcli
from tpcli.flops import count_flops
from tpcli.models.load import weights_hash
from tpcli.surgery import PooledTokens, TokenPooling
from tpcli.surgery.geometry import input_size, patch_tokens

from .dense_reference import assert_as_by_hand

HYBRIDS = "vision_transformer_hybrid"
DEPTH = 3
KEEP = (0.7, 0.5, 0.4)


def small(name: str, **kwargs: Any) -> nn.Module:
    """The architecture with 3 blocks of 96 channels on few patches, every weight large enough to
    matter (LayerScale and post-norm would start near zero)."""
    hybrid = name in timm.list_models(module=HYBRIDS)
    size = {"img_size": 128} if hybrid else {"img_size": 48, "patch_size": 8}
    width = 768 if name == "vit_base_mci_224" else 96  # its stem has that many channels
    arguments = {"depth": DEPTH, "embed_dim": width, "num_heads": 2, "num_classes": 7, **size}
    if name.endswith("sapiens2"):  # the only ones with fewer keys than queries, in some blocks
        arguments["num_kv_heads"] = (None, 1, None)
    if name in timm.list_models(module="naflexvit"):
        arguments = {**arguments, "pretrained_cfg_overlay": {"input_size": (3, 48, 48)}}
        del arguments["img_size"]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**arguments, **kwargs}).eval()
    for part, parameter in model.named_parameters():
        if part.startswith("blocks.") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        elif "gamma" in part or (".norm" in part and part.endswith("weight")):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif "token" in part or part == "head.weight":
            nn.init.normal_(parameter, std=0.5)
    return model


def images(model: nn.Module, batch: int = 2) -> Tensor:
    """Random images of the model's size, the same every time."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *input_size(model), generator=generator)


def schedule(model: nn.Module) -> list[int]:
    """Fewer tokens after every block."""
    return [max(1, int(patch_tokens(model) * keep)) for keep in KEEP]


def traits(model: nn.Module) -> set[tuple[str, ...]]:
    """What tells architectures apart for pooling: each is a path through the code of its own."""
    block = model.blocks[0]
    attention = getattr(block, "attn", block)
    rope = getattr(model, "rope", None)
    prefix = "prefix" if model.num_prefix_tokens else "no prefix"
    registers = "registers" if getattr(model, "reg_token", None) is not None else "no registers"
    return {
        ("model", type(model).__name__),
        ("block", type(block).__name__, type(attention).__name__),
        ("mlp", type(getattr(block, "mlp", None)).__name__),
        ("stem", type(getattr(model, "patch_embed", None)).__name__),
        ("tokens", prefix, registers),
        ("head", prefix, model.global_pool, type(getattr(model, "attn_pool", None)).__name__),
        ("positions", getattr(rope, "mode", type(rope).__name__)),
        ("image size", "dynamic" if getattr(model, "dynamic_img_size", False) else "fixed"),
    }


def check(name: str) -> None:
    """Assert all that pooling promises for `name`."""
    model = small(name)
    x = images(model)
    with torch.no_grad():
        plain = model(x)
        assert torch.equal(tpcli.pool(model, "none")(x), plain), "schedule none changes the output"
        check_all_kept(model, x, plain)
        for options in ({}, {"weights": "significance", "metric": "keys"}):
            if options and not has_scores(model):
                continue
            tpcli.pool(model, schedule(model), **options)
            check_prefix(model, x, plain)
        assert_as_by_hand(model, x)
        count = count_flops(model)
        assert 0 < count.pooling < count.total
        assert [b.tokens_out for b in count.blocks] == schedule(model)
    assert len(weights_hash(model)) == 64
    model.train()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):  # in the stems of hybrids; it would learn from x
            part.eval()
    model(x).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    with torch.no_grad():
        assert torch.equal(tpcli.unpool(model.eval())(x), plain), "unpool leaves something behind"


def has_scores(model: nn.Module) -> bool:
    """Whether queries and keys can be seen."""
    return hasattr(getattr(model.blocks[0], "attn", model.blocks[0]), "q_norm") or hasattr(
        model.blocks[0], "attns"
    )


def check_all_kept(model: nn.Module, x: Tensor, plain: Tensor) -> None:
    """K = N through all the machinery (masks, positions, weighted heads): the plain output."""

    def keep_all(
        self: TokenPooling, tokens: Tensor, sizes: object, source: Tensor | None, *rest: object
    ) -> PooledTokens:
        n = tokens.shape[1] - self.prefix_tokens
        each = torch.arange(n).expand(tokens.shape[0], n)
        ones = torch.ones(tokens.shape[0], n)
        return PooledTokens(tokens, ones, each)

    dense = tpcli.unpool(model).forward_intermediates(x, intermediates_only=True)
    tpcli.pool(model, schedule(model))
    with patch.object(TokenPooling, "forward", keep_all):
        torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-5)
        kept = model.forward_intermediates(x, intermediates_only=True)
        torch.testing.assert_close(kept, dense, atol=1e-5, rtol=1e-5)


def check_prefix(model: nn.Module, x: Tensor, plain: Tensor) -> None:
    """Pooled output is finite and another one; no layer touches a prefix token; K are left."""
    left: list[int] = []

    def compare(layer: nn.Module, args: tuple[Any, ...], out: PooledTokens) -> None:
        prefix = layer.prefix_tokens
        assert prefix == model.num_prefix_tokens
        assert torch.equal(out.x[:, :prefix], args[0][:, :prefix])
        torch.testing.assert_close(out.sizes.sum(1), torch.full((len(x),), float(n)))
        left.append(out.x.shape[1] - prefix)

    n = patch_tokens(model)
    layers = [m for m in model.modules() if isinstance(m, TokenPooling)]
    hooks = [layer.register_forward_hook(compare) for layer in layers]
    pooled = model(x)
    for hook in hooks:
        hook.remove()
    assert left == schedule(model)
    assert pooled.shape == plain.shape
    assert pooled.isfinite().all()
    assert not torch.allclose(pooled, plain)
