"""What timm lets one change on a model works after `pool` as it does before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.coverage import zoo
from tests.tiny import images, scramble, tiny_vit
from tpcli import pool, unpool
from tpcli.errors import TpcliError, UserError
from tpcli.surgery import TokenPooling

SCHEDULE = [50, 40, 30, 20]
Change = Callable[[nn.Module], object]

FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "VisionTransformer": ({}, ("token", "avg", "max", "avgmax", "")),
    "with prefix": (
        {"pool_include_prefix": True, "reg_tokens": 2},
        ("token", "avg", "max", "avgmax", ""),
    ),
    "Eva": ({"name": "eva02_tiny_patch14_224"}, ("token", "avg", "max", "avgmax", "")),
    "Beit": ({"name": "beit_base_patch16_224"}, ("token", "avg", "")),
    "RelPos": (
        {"name": "vit_relpos_small_patch16_224", "class_token": True},
        ("token", "avg", ""),
    ),
}
DIRECTIONS = [
    (family, *direction)
    for family, (_, kinds) in FAMILIES.items()
    for direction in product(kinds, repeat=2)
]


def output(model: nn.Module) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model(images(3))


def assert_same_before_and_after(build: Callable[[], nn.Module], change: Change) -> None:
    early, late = build(), build()
    change(early)
    scramble(pool(early, SCHEDULE), 3)
    change(pool(late, SCHEDULE))
    scramble(late, 3)
    expected = output(early)
    assert torch.equal(output(late), expected)
    assert torch.equal(output(unpool(late)), output(unpool(early)))


@pytest.mark.parametrize(("family", "start", "then"), DIRECTIONS)
def test_reset_classifier(family: str, start: str, then: str) -> None:
    arguments = FAMILIES[family][0]
    assert_same_before_and_after(
        lambda: tiny_vit(**arguments, global_pool=start),
        lambda model: model.reset_classifier(0 if then == "" else 6, then),
    )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("then", ["map", "token", "avg", "max", ""])
def test_reset_classifier_of_an_attention_pool(name: str, then: str) -> None:
    assert_same_before_and_after(
        lambda: tiny_vit(name, global_pool="map"), lambda model: model.reset_classifier(6, then)
    )


@pytest.mark.parametrize("start", ["gap", "map"])
@pytest.mark.parametrize("then", ["avg", "max", "avgmax", ""])
def test_reset_classifier_of_naflex(start: str, then: str) -> None:
    name = f"naflexvit_base_patch16_{start}"
    early, late = zoo.small(name), zoo.small(name)
    early.reset_classifier(0, then)
    pool(early, [30, 20, 10])
    pool(late, [30, 20, 10]).reset_classifier(0, then)
    batch = images(2, size=48)
    with torch.no_grad():
        assert torch.equal(late(batch), early(batch))


def replace_norm(model: nn.Module) -> None:
    model.norm = nn.LayerNorm(48)


def replace_fc_norm(model: nn.Module) -> None:
    model.fc_norm = nn.LayerNorm(48)


def unfuse(model: nn.Module) -> None:
    for block in model.blocks:
        block.attn.fused_attn = False


def drop_attention_pool(model: nn.Module) -> None:
    model.attn_pool, model.global_pool = None, "avgmax"


CHANGES: dict[str, Change] = {
    "classes": lambda model: model.reset_classifier(3),
    "no classes": lambda model: model.reset_classifier(0),
    "global_pool": lambda model: setattr(model, "global_pool", "avgmax"),
    "pool_include_prefix": lambda model: setattr(model, "pool_include_prefix", True),
    "checkpointing": lambda model: model.set_grad_checkpointing(True),
    "norm": replace_norm,
    "no norm": lambda model: setattr(model, "norm", nn.Identity()),
    "fc_norm": replace_fc_norm,
    "fused attention": unfuse,
    "head": lambda model: setattr(model, "head", nn.Linear(48, 4)),
    "attention pool": drop_attention_pool,
}


@pytest.mark.parametrize("kind", ["token", "avg", "map"])
@pytest.mark.parametrize("change", CHANGES)
def test_other_changes(change: str, kind: str) -> None:
    assert_same_before_and_after(lambda: tiny_vit(global_pool=kind), CHANGES[change])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"metric_dim": 8}, {"metric": "keys", "metric_dim": 8}])
def test_another_format(dtype: torch.dtype, options: dict[str, Any]) -> None:
    early = pool(tiny_vit(global_pool="avg").to(dtype), SCHEDULE, **options)
    late = pool(tiny_vit(global_pool="avg"), SCHEDULE, **options).to(dtype)
    batch = images(3).to(dtype)
    with torch.no_grad():
        assert torch.equal(late(batch), early(batch))


def test_pruned_to_its_first_blocks() -> None:
    early, late = tiny_vit(global_pool="avg"), tiny_vit(global_pool="avg")
    early.prune_intermediate_layers([1], prune_norm=True)
    pool(early, SCHEDULE[:2])
    pool(late, SCHEDULE).prune_intermediate_layers([1], prune_norm=True)
    assert torch.equal(output(late), output(early))
    assert torch.equal(output(unpool(late)), output(unpool(early)))


def test_an_attention_pool_that_takes_no_sizes_is_refused_when_it_runs() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, 0]

    model = pool(tiny_vit(), SCHEDULE)
    model.attn_pool = Odd()
    with pytest.raises(UserError, match=r"the Odd head .* takes no sizes"):
        output(model)


@pytest.mark.parametrize("kind", ["avg", "map", "token"])
def test_features_and_head_apart(kind: str) -> None:
    """Features know their sizes: of another batch in between, and more than once."""
    model = pool(tiny_vit(global_pool=kind), SCHEDULE)
    batches = images(2, seed=1), images(2, seed=2)
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
        features = [model.forward_features(batch) for batch in batches]
        for _ in range(2):
            for one, own in zip(features, expected, strict=True):
                assert torch.equal(model.forward_head(one), own)
        moved = copy.deepcopy(features[0])
        assert torch.equal(model.forward_head(moved), expected[0])


def test_features_that_lost_their_sizes_are_refused() -> None:
    model = pool(tiny_vit(global_pool="avg"), SCHEDULE)
    features = model.forward_features(images())
    with pytest.raises(TpcliError, match="needs the very tensor that its forward_features"):
        model.forward_head(features * 1)
    model.reset_classifier(6, "token")
    assert model.forward_head(features * 1).shape == (2, 6)


def test_a_layer_follows_another_image_size() -> None:
    model = pool(tiny_vit(), [48, 32, 32, 16])
    model.set_input_size(64)
    left: list[int] = []
    for module in model.modules():
        if isinstance(module, TokenPooling):
            module.register_forward_hook(lambda _, __, out: left.append(out.sizes.shape[1]))
    with torch.no_grad():
        assert model(images(2, size=64)).isfinite().all()
    assert left == [192, 128, 128, 64]
