"""What is said of models that can't be pooled as they are, and of poolings that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import VARIANTS, images, tiny_vit
from tpcli import find, pool, save, trace, unpool
from tpcli.config.options import PoolingOptions
from tpcli.errors import UserError
from tpcli.flops import count_flops
from tpcli.surgery import insert, pooling_spec, unpooled

SCHEDULE = [50, 40, 30, 20]


class Holder(nn.Module):
    """One's own module around a ViT, under some name."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def nested(path: str) -> nn.Module:
    module: nn.Module = tiny_vit()
    for name in reversed(path.split(".")):
        module = Holder(**{name: module})
    return module


@pytest.mark.parametrize(
    "path", ["visual.trunk", "timm_model", "base_model.model", "backbone", "model", "net.0.encoder"]
)
def test_the_vit_inside_is_pooled(path: str) -> None:
    """As it would be by itself, and nothing else is touched."""
    outer = nested(path)
    vit = outer.get_submodule(path)
    assert find(outer) is vit
    before = logits(vit)
    assert count_flops(outer) == count_flops(vit)
    assert pool(outer, SCHEDULE) is outer
    assert pooling_spec(outer) == pooling_spec(vit) == pooling_spec(pool(tiny_vit(), SCHEDULE))
    with trace(outer) as found, torch.no_grad():
        vit(images())
    assert len(found.sources) == 4
    assert count_flops(outer) == count_flops(vit)
    with unpooled(outer):
        assert pooling_spec(vit) is None
    assert pooling_spec(vit) is not None
    assert unpool(outer) is outer
    assert torch.equal(logits(vit), before)


def test_a_model_is_found_in_itself() -> None:
    model = tiny_vit()
    assert find(model) is model
    assert find(nn.DataParallel(model)) is model


@pytest.mark.parametrize("use", [lambda m: pool(m, SCHEDULE), count_flops, find])
def test_of_several_none_is_taken(use: Any) -> None:
    pair = Holder(a=tiny_vit(), b=nested("c"))
    with pytest.raises(UserError, match=r"Holder .*b\.c"):
        use(pair)
    pool(pair.b, SCHEDULE)
    unpool(pair)
    assert pooling_spec(pair.b) is None


def test_what_holds_a_model_is_not_saved_as_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Holder"):
        save(nested("backbone"), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_timms_is_said_in_full() -> None:
    class VisionTransformer(nn.Module):
        pass

    with pytest.raises(UserError, match=r"test_support\..*VisionTransformer"):
        pool(VisionTransformer(), SCHEDULE)


def test_wrappers_are_taken_off_before_pooling() -> None:
    with pytest.raises(UserError, match=r"DataParallel.* module"):
        pool(nn.DataParallel(tiny_vit()), SCHEDULE)
    with pytest.raises(UserError, match=r"OptimizedModule.* _orig_mod"):
        pool(torch.compile(tiny_vit()), SCHEDULE)


@pytest.mark.filterwarnings("ignore")
def test_flops_of_a_quantized_model() -> None:
    quantized = torch.ao.quantization.quantize_dynamic(pool(tiny_vit(), SCHEDULE), {nn.Linear})
    assert quantized(images()).shape == (2, 10)
    with pytest.raises(UserError, match="quantize"):
        count_flops(quantized)
    with pytest.raises(UserError, match="quantize"):
        pool(unpool(quantized), "flops:0.7")


def test_flops_of_a_model_with_quantized_tensors() -> None:
    class Int8Tensor(Tensor):
        __module__ = "torchao.quantization"

    model = pool(tiny_vit(), SCHEDULE)
    weight = model.head.weight.detach().as_subclass(Int8Tensor)
    model.head.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(UserError, match="quantize"):
        count_flops(model)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(images())


@pytest.mark.parametrize("variant", ["average", "class token"])
@pytest.mark.parametrize("was_pooled", [True, False])
def test_a_pooling_that_fails_midway_changes_nothing(variant: str, was_pooled: bool) -> None:
    model = tiny_vit(**VARIANTS[variant])
    if was_pooled:
        pool(model, [60, 50, 40, 30], "k-means", weights="significance")
    before, spec = logits(model), pooling_spec(model)

    norm = model.blocks[2].attn.q_norm

    def fail_once(*_: object) -> None:
        del norm.register_forward_hook
        raise MemoryError

    norm.register_forward_hook = fail_once
    with pytest.raises(MemoryError):
        pool(model, SCHEDULE, metric="keys")
    assert pooling_spec(model) == spec
    assert torch.equal(logits(model), before)
    if not was_pooled:
        assert all("forward" not in vars(module) for module in model.modules())
        assert sum(len(m._forward_hooks) for m in model.modules()) == 0


@pytest.mark.parametrize("was_pooled", [True, False])
def test_what_the_body_pools_goes_after_it(was_pooled: bool) -> None:
    model = tiny_vit(global_pool="avg")
    if was_pooled:
        pool(model, SCHEDULE, "k-means")
    before, spec = logits(model), pooling_spec(model)

    def interrupted() -> None:
        pool(model, [30] * 4, metric="keys")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), unpooled(model):
        interrupted()
    assert pooling_spec(model) == spec
    assert torch.equal(logits(model), before)


def test_options_beside_complete_options_count() -> None:
    model = pool(tiny_vit(), SCHEDULE, PoolingOptions("ward"), metric="keys")
    spec = pooling_spec(model)
    assert spec is not None
    assert spec.options.metric == "keys"
    for wrong in ({"nonsense": 1}, {"iterations": -3}):
        with pytest.raises(UserError):
            pool(model, SCHEDULE, PoolingOptions("k-means"), **wrong)
    assert pooling_spec(model) == spec


def test_a_spec_is_inserted_as_it_is() -> None:
    one = pool(tiny_vit(), SCHEDULE, "k-means")
    spec = pooling_spec(one)
    assert spec is not None
    assert torch.equal(logits(insert(tiny_vit(), spec)), logits(one))
