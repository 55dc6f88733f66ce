"""A saved model is the one that timm builds again from the folder, or saving it is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.helpers.models import images, tiny_vit
from tpcli import load, pool, save
from tpcli.errors import UserError

SCHEDULE = [50, 40, 30, 20]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model.eval()(images())
        return answer


def replace_all(model: nn.Module, kind: type[nn.Module], by: Callable[[], nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, by())


def set_eps(model: Any) -> None:
    model.blocks[1].norm2.eps = 1e-2


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "head": (lambda m: setattr(m, "head", nn.Linear(48, 5)), "head"),
    "fewer blocks": (lambda m: setattr(m, "blocks", m.blocks[:2]), r"blocks\.[23]"),
    "pruned": (lambda m: m.prune_intermediate_layers([1], prune_norm=True), "norm|blocks"),
    "stem": (lambda m: setattr(m.patch_embed, "proj", nn.Conv2d(1, 48, 4, 4)), "patch_embed.proj"),
    "global_pool": (lambda m: setattr(m, "global_pool", "avg"), "norm"),
    "kind of average": (lambda m: setattr(m, "global_pool", "max"), "norm|global_pool"),
    "activation": (lambda m: replace_all(m, nn.GELU, nn.ReLU), "act"),
    "approximation": (lambda m: replace_all(m, nn.GELU, lambda: nn.GELU("tanh")), "approximate"),
    "eps": (set_eps, r"blocks\.1\.norm2\.eps"),
    "no norm": (lambda m: setattr(m, "norm", nn.Identity()), "norm"),
    "scale": (lambda m: setattr(m.blocks[0].attn, "scale", 1.0), r"blocks\.0\.attn\.scale"),
    "a layer more": (lambda m: setattr(m, "head_drop", nn.Linear(48, 48)), "head_drop"),
}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_timm_would_build_otherwise_is_refused(
    change: str, pooled: bool, tmp_path: Path
) -> None:
    model = tiny_vit()
    apply, named = CHANGES[change]
    apply(model)
    if pooled:
        pool(model, SCHEDULE[: len(model.blocks)])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=named):
        save(model, tmp_path / "mine")
    assert os.listdir(tmp_path) == []


KEPT: dict[str, Callable[[Any], object]] = {
    "classes": lambda m: m.reset_classifier(7),
    "no head": lambda m: m.reset_classifier(0),
    "pruned head": lambda m: m.prune_intermediate_layers([3], prune_norm=False, prune_head=True),
    "average": lambda m: m.reset_classifier(7, "avg"),
    "input size": lambda m: m.set_input_size(32, patch_size=8),
    "training options": lambda m: m.train().set_grad_checkpointing(),
    "drops": lambda m: replace_all(m.blocks, nn.Dropout, lambda: nn.Dropout(0.3)),
    "unfused": lambda m: setattr(m.blocks[0].attn, "fused_attn", False),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "transposed": lambda m: setattr(m.head, "weight", nn.Parameter(torch.randn(48, 10).T)),
    "16 bits": lambda m: m.bfloat16().float(),
}


@pytest.mark.parametrize("change", KEPT)
def test_what_timm_builds_again_comes_back(change: str, tmp_path: Path) -> None:
    model = pool(tiny_vit(), [12, 8, 4, 4] if change == "input size" else SCHEDULE)
    KEPT[change](model)
    save(model, tmp_path / "mine")
    # in another layout the same sums run in another order
    torch.testing.assert_close(logits(load(str(tmp_path / "mine")).model), logits(model))


def test_weights_that_share_memory(tmp_path: Path) -> None:
    model: Any = tiny_vit()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    save(model, tmp_path / "mine")
    assert torch.equal(logits(load(str(tmp_path / "mine")).model), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_vit().to(dtype)
    save(model, tmp_path / "mine")
    loaded = load(str(tmp_path / "mine")).model
    assert torch.equal(logits(loaded), logits(model.float()))


def test_a_forward_of_ones_own_is_said_not_to_be_saved(tmp_path: Path) -> None:
    model: Any = tiny_vit()
    attention = model.blocks[1].attn
    attention.forward = MethodType(type(attention).forward, attention)
    save(model, tmp_path / "same")
    attention.forward = lambda x, **kwargs: x
    with pytest.warns(UserWarning, match=r"blocks\.1\.attn"):
        save(model, tmp_path / "mine")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    model = tiny_vit()
    cpu_offload(model)
    with pytest.raises(UserError, match=r"cls_token.*offloaded"):
        save(model, tmp_path / "mine")


def test_a_model_that_timm_did_not_build(tmp_path: Path) -> None:
    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3)
    with pytest.raises(UserError, match="VisionTransformer"):
        save(model, tmp_path / "mine")


def test_what_does_not_fit_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    """A folder that another program wrote; the error of torch has the facts on its second line."""
    from safetensors.torch import load_file, save_file

    save(tiny_vit(), tmp_path / "mine")
    file = tmp_path / "mine" / "model.safetensors"
    weights = load_file(file)
    weights["head.weight"] = torch.zeros(5, 48)
    save_file(weights, file)
    with pytest.raises(UserError, match=r"head\.weight"):
        load(str(tmp_path / "mine"))
