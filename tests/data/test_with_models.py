"""Images are of the size, the channels and the type that the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import tiny_vit
from tpcli import count_flops, evaluate, pool
from tpcli.bench.clock import BenchOptions
from tpcli.bench.compare import bench
from tpcli.config.options import pooling_options
from tpcli.data import create
from tpcli.errors import UserError
from tpcli.models.load import load
from tpcli.models.save import save
from tpcli.surgery.geometry import input_size, patch_tokens

TINY: dict[str, Any] = {"embed_dim": 48, "depth": 1, "num_heads": 3, "patch_size": 4}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", TINY),
        ("vit_tiny_patch16_224", {**TINY, "dynamic_img_size": True}),
        ("vit_tiny_patch16_224", {**TINY, "dynamic_img_size": True, "dynamic_img_pad": True}),
        ("vit_small_patch16_dinov3", {"depth": 1}),
    ],
)
def test_images_are_of_the_size_that_flops_are_counted_at(
    name: str, arguments: dict[str, Any]
) -> None:
    loaded = load(name, pretrained=False, img_size=32, num_classes=10, model_kwargs=arguments)
    data = create("demo", loaded.data_config, limit=2)
    assert data.images[0][0].shape == input_size(loaded.model) == (3, 32, 32)
    count = count_flops(loaded.model)
    assert count.blocks[0].tokens_in == patch_tokens(loaded.model)
    assert evaluate(loaded.model, data, device="cpu").count == 2


def test_tokens_of_a_size_that_is_padded_to_whole_patches() -> None:
    arguments = {**TINY, "dynamic_img_size": True, "dynamic_img_pad": True}
    loaded = load(
        "vit_tiny_patch16_224",
        pretrained=False,
        img_size=30,
        num_classes=10,
        model_kwargs=arguments,
    )
    assert patch_tokens(loaded.model) == 64
    pool(loaded.model, "tokens:20", "ward")
    data = create("demo", loaded.data_config, limit=2)
    block = count_flops(loaded.model).blocks[0]
    assert (block.tokens_in, block.tokens_out) == (64, 20)
    assert evaluate(loaded.model, data, device="cpu").count == 2


def test_images_of_another_size_are_refused() -> None:
    loaded = load("demo")
    data = create("demo", {**loaded.data_config, "input_size": (3, 48, 48)}, limit=2)
    with pytest.raises(UserError, match=r"3x48x48.*3x32x32"):
        evaluate(loaded.model, data, device="cpu")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_model_of_one_channel(tmp_path: Path, channels: int) -> None:
    save(tiny_vit(in_chans=channels), tmp_path / "model")
    loaded = load(str(tmp_path / "model"))
    assert loaded.data_config["input_size"] == (channels, 32, 32)
    assert len(loaded.data_config["mean"]) == len(loaded.data_config["std"]) == channels
    data = create("demo", loaded.data_config, limit=4)
    assert evaluate(loaded.model, data, device="cpu").count == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    loaded = load("demo")
    data = create("demo", loaded.data_config, limit=20)
    plain = evaluate(loaded.model, data, device="cpu")
    model = loaded.model.to(dtype)
    assert evaluate(model, data, device="cpu").loss == pytest.approx(plain.loss, abs=0.05)
    options = BenchOptions(batch_size=2, device="cpu", seconds=0.01)
    assert bench(model, "r:5", pooling_options("tome"), options).rounds >= 5
