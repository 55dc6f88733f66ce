"""Put pooling in, take it out: nothing is lost, nothing is left behind, nothing is shared."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from torch import nn

from tests.helpers.models import POSITIONS, SIDE_BY_SIDE, VARIANTS, images, tiny_vit
from tpcli import Schedule, pool, unpool
from tpcli.config.options import PoolingOptions
from tpcli.errors import TpcliError, UserError
from tpcli.surgery import TokenPooling, pooling_spec, unpooled

FALLING = [50, 40, 30, 20]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def logits(model: nn.Module, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model(images(3, seed=seed))


def hooks_in(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@every_variant
@pytest.mark.parametrize("weights", ["size", "significance"])
def test_unpool_gives_the_same_bits(variant: str, weights: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    names = [name for name, _ in model.named_modules()]
    before = logits(model)
    pool(model, FALLING, weights=weights, metric="keys")
    assert not torch.equal(logits(model), before)
    unpool(model)
    assert torch.equal(logits(model), before)
    assert [name for name, _ in model.named_modules()] == names
    assert hooks_in(model) == 0
    assert pooling_spec(model) is None
    assert all("forward" not in vars(module) for module in model.modules())
    assert "pool" not in vars(model)
    assert "forward_intermediates" not in vars(model)


@pytest.mark.parametrize(("variant", "position"), POSITIONS)
def test_a_schedule_that_removes_nothing_gives_the_same_bits(variant: str, position: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    before = logits(model)
    assert torch.equal(logits(pool(model, "none", position=position)), before)
    assert torch.equal(logits(pool(model, [64] * 4, position=position)), before)
    assert pooling_spec(model) is not None


@every_variant
def test_layers_that_keep_every_token_change_nothing(variant: str) -> None:
    """At another image size a layer can come to K = N; the tokens pass through it."""
    model = tiny_vit(**VARIANTS[variant])
    before = logits(model)
    pool(model, [63] * 4)
    for module in model.modules():
        if isinstance(module, TokenPooling):
            module.tokens_out = 64
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)


def test_pool_returns_the_same_model_and_remembers_how() -> None:
    model = tiny_vit()
    assert pool(model, FALLING, "k-means", iterations=2, position="block") is model
    spec = pooling_spec(model)
    assert spec is not None
    assert spec.schedule.tokens == (50, 40, 30, 20)
    assert spec.options == PoolingOptions("k-means", iterations=2, position="block")
    assert unpool(model) is model


@every_variant
def test_the_place_is_between_attention_and_mlp_where_there_is_one(variant: str) -> None:
    spec = pooling_spec(pool(tiny_vit(**VARIANTS[variant]), FALLING))
    assert spec is not None
    assert spec.options.position == ("block" if variant in SIDE_BY_SIDE else "attention")


@every_variant
def test_state_dict_stays_as_it_was(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    keys = list(model.state_dict())
    parameters = [name for name, _ in model.named_parameters()]
    pool(model, FALLING, metric_dim=8)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == parameters


def test_state_dict_of_a_pooled_model_loads_anywhere() -> None:
    pooled = pool(tiny_vit(seed=1), FALLING)
    file = io.BytesIO()
    torch.save(pooled.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    plain, other = tiny_vit(seed=2), pool(tiny_vit(seed=3), FALLING)
    plain.load_state_dict(state)
    other.load_state_dict(state)
    assert torch.equal(logits(other), logits(pooled))
    assert torch.equal(logits(plain), logits(unpool(pooled)))


def test_pooling_again_replaces() -> None:
    model, fresh = tiny_vit(), tiny_vit()
    pool(model, [32, 16, 8, 4], "k-medoids", weights="significance", metric="keys")
    pool(model, FALLING, "ward")
    pool(fresh, FALLING, "ward")
    assert torch.equal(logits(model), logits(fresh))
    assert hooks_in(model) == hooks_in(fresh) == 0


def test_two_models_in_one_process_do_not_meet() -> None:
    one, two = tiny_vit(seed=1), tiny_vit(seed=2)
    alone = logits(pool(one, FALLING, weights="significance"))
    pool(two, [16, 16, 16, 16], "k-means")
    other = logits(two)
    assert torch.equal(logits(one), alone)
    unpool(one)
    assert torch.equal(logits(two), other)


@pytest.mark.parametrize(
    "variant", ["class token", "average", "map", "ParallelScalingBlock", "Eva"]
)
def test_a_copy_is_not_tied_to_the_original(variant: str) -> None:
    """As weight averaging (EMA) takes one."""
    model = tiny_vit(**VARIANTS[variant])
    plain = logits(model)
    pool(model, FALLING, weights="significance")
    pooled = logits(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    changed = logits(model)
    assert not torch.equal(changed, pooled)
    assert torch.equal(logits(twin), pooled)

    unpool(twin)
    assert torch.equal(logits(twin), plain)
    assert hooks_in(twin) == 0
    assert torch.equal(logits(model), changed), "the original stays pooled"


def test_a_copy_of_the_copy_pools_with_its_own_layers() -> None:
    model = pool(tiny_vit(), FALLING)
    twin = copy.deepcopy(copy.deepcopy(model))
    mine = {id(m) for m in model.modules()}
    assert not mine & {id(m) for m in twin.modules()}
    for block in twin.blocks:
        assert block.forward.args == (block,)
        assert block.token_pooling in list(twin.modules())


def test_unpooled_holds_in_the_body_only() -> None:
    model = tiny_vit()
    plain = logits(model)
    pooled = logits(pool(model, FALLING, "ward"))
    with unpooled(model):
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), pooled)
    with pytest.raises(RuntimeError, match="stop"), unpooled(model):
        raise RuntimeError("stop")
    assert torch.equal(logits(model), pooled)


def test_unpool_of_a_plain_model_does_nothing() -> None:
    model = tiny_vit()
    before = logits(model)
    assert torch.equal(logits(unpool(model)), before)


def test_an_attention_mask_of_the_caller_is_refused() -> None:
    model = pool(tiny_vit(), FALLING)
    with pytest.raises(TpcliError, match="mask"):
        model(images(), attn_mask=torch.zeros(65, 65))


def test_another_image_size_keeps_the_shares() -> None:
    model = pool(tiny_vit(dynamic_img_size=True), [48, 32, 32, 16])
    with torch.no_grad():
        features = model.forward_features(images(2, size=64))
    assert features.shape == (2, 1 + 256 // 4, 48)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_a_model_that_is_no_vit_is_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UserError, match=type(model).__name__):
        pool(model, "none")


@pytest.mark.parametrize("variant", SIDE_BY_SIDE)
def test_a_block_without_a_middle_says_so(variant: str) -> None:
    model = tiny_vit(**VARIANTS[variant])
    before = logits(model)
    with pytest.raises(UserError, match=f"blocks.0: {variant}"):
        pool(model, FALLING, position="attention")
    assert torch.equal(logits(model), before)


def test_class_weights_need_a_class_token() -> None:
    with pytest.raises(UserError, match="weights=class"):
        pool(tiny_vit(**VARIANTS["average, no class token"]), FALLING, weights="class")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "tokenz"}, "metric 'tokenz' is unknown; use one of tokens.* mean tokens?"),
        ({"weights": "sizes"}, "weights 'sizes' is unknown"),
        ({"start": "topk"}, "start 'topk' is unknown"),
        ({"reduce": "median"}, "reduce 'median' is unknown"),
        ({"position": "middle"}, "position 'middle' is unknown"),
        ({"iterations": -1}, "iterations -1 is out of range; use 0 to"),
        ({"metric_dim": 0}, "metric_dim 0 is out of range; use 1 to"),
        ({"steps": 3}, "'steps' is unknown.*iterations"),
        ({"method": "kmedoids"}, "method 'kmedoids' is unknown.*Did you mean k-medoids"),
    ],
)
def test_options_that_are_wrong_are_named(options: dict[str, object], message: str) -> None:
    model = tiny_vit()
    with pytest.raises(UserError, match=message):
        pool(model, FALLING, **options)
    assert pooling_spec(model) is None


def test_a_schedule_of_another_depth_is_refused() -> None:
    with pytest.raises(UserError, match="2 numbers"):
        pool(tiny_vit(), [32, 16])
    with pytest.raises(UserError, match="5 numbers"):
        pool(tiny_vit(), Schedule((9, 9, 9, 9, 9), 64))


def test_a_failed_pool_leaves_the_old_pooling() -> None:
    model = pool(tiny_vit(), FALLING)
    before = logits(model)
    with pytest.raises(UserError):
        pool(model, "r:nothing")
    assert torch.equal(logits(model), before)
