"""Checkpoints that people have: wrappings, prefixes, other heads, other image sizes, old names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tpcli.errors import UserError
from tpcli.models import load as models

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 2}
DEIT, EVA = "deit_tiny_patch16_224", "eva02_tiny_patch14_224"
Wrap = Callable[[dict[str, Tensor]], dict[str, Any]]


def weights(name: str, **kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(timm.create_model(name, **{**SMALL, **kwargs}).state_dict())


def load(name: str, file: Path, **kwargs: Any) -> models.LoadedModel:
    arguments = {**SMALL, **kwargs}
    classes, size = arguments.pop("num_classes", None), arguments.pop("img_size")
    return models.load(
        name, checkpoint=file, img_size=size, num_classes=classes, model_kwargs=arguments
    )


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS: dict[str, Wrap] = {
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": prefixed(s, "module."), "arch": "deit"},
    "model_ema": lambda s: {"model": {k: v * 0 for k, v in s.items()}, "model_ema": s},
    "module": lambda s: {"module": s},
    "module.": lambda s: prefixed(s, "module."),
    "args": lambda s: {"model": s, "args": argparse.Namespace(lr=1e-3)},
    "backbone": lambda s: {"model": {**prefixed(s, "backbone."), "dino_head.w": torch.ones(1)}},
    "teacher": lambda s: {
        "student": {k: v * 0 for k, v in prefixed(s, "module.backbone.").items()},
        "teacher": {**prefixed(s, "module.backbone."), "module.head.last": torch.ones(2)},
    },
}


@pytest.mark.long
@pytest.mark.parametrize("name", [DEIT, EVA])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_of_training_scripts(tmp_path: Path, name: str, wrapping: str) -> None:
    state = weights(name)
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "w.pth")
    loaded = load(name, tmp_path / "w.pth").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", [DEIT, EVA, "deit_tiny_distilled_patch16_224"])
def test_a_fine_tuned_head_brings_its_classes(tmp_path: Path, name: str) -> None:
    torch.save(weights(name, num_classes=7), tmp_path / "seven.pth")
    assert load(name, tmp_path / "seven.pth").model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(UserError, match=r"head\.bias \(7,\) for \(9,\).*the number of classes"):
        load(name, tmp_path / "seven.pth", num_classes=9)


@pytest.mark.parametrize("name", [DEIT, EVA])
def test_position_embeddings_of_another_image_size(tmp_path: Path, name: str) -> None:
    torch.save(weights(name), tmp_path / "w.pth")
    model = load(name, tmp_path / "w.pth", img_size=48).model
    assert model.pos_embed.shape[1] == 1 + 36
    assert model(torch.zeros(1, 3, 48, 48)).isfinite().all()


def test_original_names_of_eva(tmp_path: Path) -> None:
    state = weights(EVA)
    rope = {"rope.freqs_cos": torch.zeros(16, 24), "rope.freqs_sin": torch.zeros(16, 24)}
    torch.save({"module": {**state, **rope}}, tmp_path / "eva.pt")
    loaded = load(EVA, tmp_path / "eva.pt").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_original_names_of_deit3(tmp_path: Path) -> None:
    name = "deit3_small_patch16_224"
    state = weights(name)
    original = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in state.items()
    }
    torch.save({"model": original}, tmp_path / "deit3.pth")
    loaded = load(name, tmp_path / "deit3.pth").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
