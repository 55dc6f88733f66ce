"""Every way in which people run a ViT, pooled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import AttentionPoolPrr
from torch import Tensor, nn

import tpcli
from tests.helpers import architectures as zoo
from tpcli.errors import UserError
from tpcli.models import load as models
from tpcli.surgery import TokenPooling

NAMES = ("deit_tiny_patch16_224", "vit_small_patch16_rope_224", "vit_base_patch16_siglip_224")
KEEP = [20, 12, 8]


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tpcli.pool(zoo.small(request.param), KEEP)


@pytest.fixture
def x(model: nn.Module) -> Tensor:
    return zoo.images(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    full = model(x)
    with torch.autocast("cpu", dtype):
        half = model(x)
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_weights(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    full = model(x)
    half = model.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.9


@torch.no_grad()
def test_double_precision(model: nn.Module, x: Tensor) -> None:
    assert (
        torch.nn.functional.cosine_similarity(
            model.double()(x.double()).float(), model.float()(x)
        ).min()
        > 0.99
    )


@torch.no_grad()
def test_channels_last(model: nn.Module, x: Tensor) -> None:
    out = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, model(x), atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing(model: nn.Module, x: Tensor) -> None:
    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(x).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.train()
    plain = gradients()
    model.set_grad_checkpointing(True)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_features_and_head_apart(model: nn.Module, x: Tensor) -> None:
    features = model.forward_features(x)
    assert features.shape[1] == model.num_prefix_tokens + KEEP[-1]
    assert torch.equal(model.forward_head(features), model(x))


def test_features_of_a_model_taken_apart_say_why_not() -> None:
    hooked = zoo.small("deit_tiny_patch16_224", features_only=True, feature_cls="hook")
    with pytest.raises(UserError, match="FeatureHookNet"):
        tpcli.pool(hooked, "r:2")


def test_attention_that_hides_its_queries_and_keys() -> None:
    model = zoo.small("beit_base_patch16_224")
    with pytest.raises(UserError, match="Beit"):
        tpcli.pool(model, KEEP, weights="significance")


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_small_patch16_rope_224"])
@torch.no_grad()
def test_another_image_size_keeps_the_same_shares(name: str) -> None:
    model = tpcli.pool(zoo.small(name, dynamic_img_size=True), KEEP)
    x = torch.randn(2, 3, 96, 64)  # 96 patches, not 36
    layers = [m for m in model.modules() if isinstance(m, TokenPooling)]
    left = []
    for layer in layers:
        layer.register_forward_hook(lambda _, args, out: left.append(out.sizes.shape[1]))
    assert model(x).isfinite().all()
    assert left == [53, 32, 21]


@torch.no_grad()
def test_a_copy_is_pooled_on_its_own(model: nn.Module, x: Tensor) -> None:
    twin = copy.deepcopy(model)
    out = model(x)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(twin(x), out)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_patch_dropout(rate: float) -> None:
    model = tpcli.pool(zoo.small("eva02_tiny_patch14_224", patch_drop_rate=rate), KEEP).train()
    model(zoo.images(model)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_patch_refining_head() -> None:
    model = zoo.small("deit_tiny_patch16_224", global_pool="prr")
    assert isinstance(model.attn_pool, AttentionPoolPrr)
    x = zoo.images(model)
    zoo.check_all_kept(model, x, tpcli.unpool(model)(x))
    assert tpcli.pool(model, KEEP)(x).isfinite().all()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_distributed(model: nn.Module, x: Tensor) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    torch.testing.assert_close(wrapped(x), model(x))
    wrapped(x).sum().backward()
    with pytest.raises(UserError, match="DistributedDataParallel"):
        tpcli.pool(wrapped, KEEP)


@torch.no_grad()
def test_what_was_saved_loads_pooled_here_and_plain_in_timm(tmp_path: Path) -> None:
    model = tpcli.pool(zoo.small("vit_small_patch16_rope_224"), KEEP)
    x = zoo.images(model)
    tpcli.save(model, tmp_path / "saved")
    pooled = models.load(str(tmp_path / "saved")).model.eval()
    torch.testing.assert_close(pooled(x), model(x), atol=1e-5, rtol=1e-5)
    plain = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    torch.testing.assert_close(plain(x), tpcli.unpool(model)(x), atol=1e-5, rtol=1e-5)
