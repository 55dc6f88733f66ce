"""Forwards and other methods that people and libraries put on single modules: kept, given back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)

from tests.helpers.models import images, tiny_vit
from tpcli import count_flops, pool, unpool
from tpcli.errors import TpcliError, UserError
from tpcli.surgery import pooling_spec, unpooled

SCHEDULE = [50, 40, 30, 20]


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(images())
        return result


def attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The instance attributes of each module but for what torch itself keeps there."""
    kept = ("_modules", "_parameters", "_buffers")
    return {
        name: {key: value for key, value in vars(module).items() if key not in kept}
        for name, module in model.named_modules()
    }


def hook(model: nn.Module) -> nn.Module:
    for module in (*model.blocks, model.norm, model):  # type: ignore[misc]
        add_hook_to_module(module, ModelHook())
    return model


def halved(name: str) -> Callable[..., Any]:
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return 0.5 * getattr(type(self), name)(self, *args, **kwargs)

    return method


PATCHED = [
    ("", "forward"),
    ("", "forward_features"),
    ("", "forward_head"),
    ("", "pool"),
    ("blocks.1", "forward"),
    ("blocks.1.attn", "forward"),
    ("blocks.2.mlp", "forward"),
    ("norm", "forward"),
    ("head", "forward"),
]


@pytest.mark.filterwarnings("ignore:blocks.1 has a forward")
@pytest.mark.parametrize(("place", "name"), PATCHED)
def test_a_method_put_on_one_module_is_kept_and_given_back(place: str, name: str) -> None:
    model, plain = tiny_vit(), tiny_vit()
    module = model.get_submodule(place)
    setattr(module, name, MethodType(halved(name), module))
    before, expected = attributes(model), output(model)
    pool(model, SCHEDULE)
    pool(plain, SCHEDULE, position=pooling_spec(model).options.position)  # type: ignore[union-attr]
    assert not torch.equal(output(model), output(plain))
    assert output(model).isfinite().all()
    assert torch.equal(output(unpool(model)), expected)
    assert attributes(model) == before


@pytest.mark.parametrize("kind", ["token", "avg"])
def test_features_that_a_patch_changes_keep_their_sizes(kind: str) -> None:
    """Scaled features give the same answers here, as `fc_norm` and `norm` do not scale."""
    model, plain = tiny_vit(global_pool=kind), tiny_vit(global_pool=kind)
    model.forward_features = MethodType(halved("forward_features"), model)
    pool(model, SCHEDULE)
    features = pool(plain, SCHEDULE).forward_features(images())  # type: ignore[operator]
    sizes = features.token_sizes
    scaled = 0.5 * features
    scaled.token_sizes = sizes
    assert torch.equal(model(images()), plain.forward_head(scaled))  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["avg", "avgmax", "map"])
def test_a_pool_that_takes_no_sizes_is_refused(kind: str) -> None:
    model = tiny_vit(global_pool=kind)
    model.pool = MethodType(halved("pool"), model)
    expected = output(model)
    with pytest.raises(UserError, match="pool"):
        pool(model, SCHEDULE)
    assert torch.equal(output(model), expected)


@pytest.mark.filterwarnings("ignore:blocks.1 has a forward")
def test_a_forward_that_takes_no_mask_is_refused_by_its_name() -> None:
    model = tiny_vit()
    block: Any = model.blocks[1]  # type: ignore[index]
    own = block.forward
    block.forward = lambda x: own(x)
    with pytest.raises(UserError, match=r"blocks\.1"):
        pool(model, SCHEDULE)
    pool(model, SCHEDULE, proportional_attention=False)
    expected = pool(tiny_vit(), SCHEDULE, position="block", proportional_attention=False)
    assert torch.equal(output(model), output(expected))


@pytest.mark.filterwarnings("ignore:blocks.1 has a forward")
def test_a_block_with_a_forward_of_its_own_has_no_inside() -> None:
    model = tiny_vit()
    block = model.blocks[1]  # type: ignore[index]
    block.forward = MethodType(halved("forward"), block)
    with pytest.raises(UserError, match=r"blocks\.1"):
        pool(model, SCHEDULE, position="attention")
    with pytest.warns(UserWarning, match=r"blocks\.1"):
        pool(model, SCHEDULE)


def test_other_methods_of_one_model() -> None:
    model, sizes = tiny_vit(), []
    model.set_input_size = lambda *args, **kwargs: sizes.append(args)
    own = model.set_input_size
    pool(model, SCHEDULE).set_input_size(32)  # type: ignore[operator]
    assert sizes == [(32,)]
    assert vars(unpool(model))["set_input_size"] is own
    model.forward_intermediates = lambda *args, **kwargs: None
    with pytest.raises(UserError, match="forward_intermediates"):
        pool(model, SCHEDULE)


def test_intermediates_of_a_model_with_its_own_method() -> None:
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return type(model).forward_intermediates(self, *args, **kwargs)  # type: ignore[attr-defined]

    calls: list[int] = []
    model = tiny_vit()
    expected = pool(tiny_vit(), SCHEDULE).forward_intermediates(images())[0]  # type: ignore[operator]
    model.forward_intermediates = MethodType(noted, model)
    assert torch.equal(pool(model, SCHEDULE).forward_intermediates(images())[0], expected)  # type: ignore[operator]
    assert calls


@pytest.mark.parametrize(
    ("name", "place", "method"),
    [
        ("beit_base_patch16_224", "blocks.1.attn", "_get_rel_pos_bias"),
        ("vit_relpos_small_patch16_224", "blocks.1.attn.rel_pos", "get_bias"),
    ],
)
def test_a_position_bias_of_ones_own(name: str, place: str, method: str) -> None:
    model, plain = tiny_vit(name), pool(tiny_vit(name), SCHEDULE)
    module = model.get_submodule(place)
    setattr(module, method, MethodType(halved(method), module))
    before, expected = attributes(model), output(model)
    assert not torch.equal(output(pool(model, SCHEDULE)), output(plain))
    assert torch.equal(output(unpool(model)), expected)
    assert attributes(model) == before


def test_hooks_of_accelerate_before_pooling() -> None:
    expected = output(pool(tiny_vit(), SCHEDULE))
    model = hook(tiny_vit())
    before, plain = attributes(model), output(model)
    pool(model, SCHEDULE)
    assert torch.equal(output(model), expected)
    assert torch.equal(output(copy.deepcopy(model)), expected)
    unpool(model)
    assert attributes(model) == before
    pool(model, SCHEDULE)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(output(model), expected)
    assert torch.equal(output(unpool(model)), plain)


def test_hooks_of_accelerate_after_pooling() -> None:
    plain = output(tiny_vit())
    model = pool(tiny_vit(), SCHEDULE)
    expected = output(model)
    hook(model)
    for _ in range(2):
        assert torch.equal(output(pool(model, SCHEDULE)), expected)
        assert torch.equal(output(unpool(model)), plain)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(output(model), plain)


def test_a_wrapper_around_ours_outlives_the_pooling() -> None:
    """Taken out, our forward inside the wrapper is the block's own again; pooled anew, ours."""
    model, calls = pool(tiny_vit(), SCHEDULE, position="block"), []
    expected, plain = output(model), output(tiny_vit())
    block: Any = model.blocks[1]  # type: ignore[index]
    inside = block.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inside(*args, **kwargs)

    block.forward = counted
    assert torch.equal(output(model), expected)
    assert torch.equal(output(unpool(model)), plain)
    assert torch.equal(output(pool(model, SCHEDULE, position="block")), expected)
    assert calls == [1, 1, 1]


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"metric": "keys", "metric_dim": 8}])
def test_offloaded_weights(options: dict[str, Any]) -> None:
    whole = pool(tiny_vit(), SCHEDULE, **options)
    model = tiny_vit()
    cpu_offload(model)
    pool(model, SCHEDULE, **options)
    assert torch.equal(output(model), output(whole))
    assert count_flops(model).total == count_flops(whole).total
    assert torch.equal(output(unpool(model)), output(tiny_vit()))


def gradients(model: nn.Module) -> list[Tensor]:
    model.train()
    model(images()).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("first", ["pool", "wrap"])
@pytest.mark.parametrize("kind", list(CheckpointImpl))
def test_checkpoint_wrappers_of_torch(kind: CheckpointImpl, first: str) -> None:
    model, plain = tiny_vit(), pool(tiny_vit(), SCHEDULE)
    expected = output(plain)
    if first == "pool":
        pool(model, SCHEDULE)
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        model.blocks[i] = checkpoint_wrapper(block, checkpoint_impl=kind)  # type: ignore[index, operator]
    if first == "wrap":
        pool(model, SCHEDULE)
    assert torch.equal(output(model), expected)
    assert count_flops(model) == count_flops(plain)
    if kind is CheckpointImpl.REENTRANT:
        with pytest.raises(TpcliError, match="reentrant"):
            gradients(model)
    else:
        torch.testing.assert_close(gradients(model), gradients(plain))
    assert torch.equal(output(unpool(model).eval()), output(tiny_vit()))


def test_reentrant_checkpoints_where_only_the_last_block_pools() -> None:
    """Then no pooled tokens enter a checkpoint, and gradients are right."""
    from timm.layers import set_reentrant_ckpt

    schedule = [64, 64, 64, 20]
    expected = gradients(pool(tiny_vit(), schedule))
    model = pool(tiny_vit(), schedule)
    model.set_grad_checkpointing()  # type: ignore[operator]
    set_reentrant_ckpt(True)
    try:
        torch.testing.assert_close(gradients(model), expected)
        pool(model, SCHEDULE)
        with pytest.raises(TpcliError, match="reentrant"):
            gradients(model)
    finally:
        set_reentrant_ckpt(False)


def test_blocks_that_are_wrapped_or_sharded_are_refused_with_what_to_do() -> None:
    class FSDPBlock(type(tiny_vit().blocks[0])):  # type: ignore[index, misc]
        """As `fully_shard` makes them: a subclass."""

    class Wrapped(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.inner = block

    for change in (
        lambda block: Wrapped(block),
        lambda block: setattr(block, "__class__", FSDPBlock) or block,
    ):
        model = tiny_vit()
        model.blocks[2] = change(model.blocks[2])  # type: ignore[index, operator]
        with pytest.raises(UserError, match=r"blocks\.2.*pool the model first"):
            pool(model, SCHEDULE)


def test_unpooled_brings_back_every_model_inside() -> None:
    pair = nn.ModuleList([pool(tiny_vit(), SCHEDULE), pool(tiny_vit(), "r:4"), tiny_vit()])
    specs = [pooling_spec(model) for model in pair]
    with unpooled(pair):
        assert not any(map(pooling_spec, pair))
    assert [pooling_spec(model) for model in pair] == specs


def test_transformers_wrapper_writes_how_its_model_is_pooled() -> None:
    """A stand-in for the wrapper; only this one is changed, and its class never."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.timm_model = tiny_vit()
            self.config: Any = type("Config", (), {})()

        def save_pretrained(self) -> Any:
            return getattr(self.config, "token_pooling", None)

    wrapper, methods = pool(Wrapper(), SCHEDULE), dict(vars(Wrapper))
    spec = pooling_spec(wrapper)
    assert spec is not None
    assert wrapper.save_pretrained() == spec.to_dict()
    unpool(wrapper.timm_model)
    assert wrapper.save_pretrained() is None
    assert "save_pretrained" not in vars(unpool(wrapper))
    assert Wrapper().save_pretrained() is None
    assert dict(vars(Wrapper)) == methods
