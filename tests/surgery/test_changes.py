"""What timm lets one change on a model works after `pool` as it does before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from tests.helpers import architectures as zoo
from tests.helpers.models import images, scramble, tiny_vit
from tests.helpers.selection import some_of
from tpcli import load, pool, save, trace, unpool
from tpcli.errors import TpcliError, UserError
from tpcli.surgery import pooling_spec

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
    pytest.param(
        family, *direction, marks=[pytest.mark.long] if direction[0] == direction[1] else []
    )
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
    with pytest.raises(UserError, match="Odd"):
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
    with pytest.raises(TpcliError, match="forward_features"):
        model.forward_head(features * 1)
    model.reset_classifier(6, "token")
    assert model.forward_head(features * 1).shape == (2, 6)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_another_input_size_is_as_if_pooled_at_it(name: str) -> None:
    early, late = tiny_vit(name), tiny_vit(name)
    early.set_input_size(48)
    pool(early, [108, 72, 72, 36], "k-means")
    pool(late, [48, 32, 32, 16], "k-means").set_input_size(48)
    with torch.no_grad():
        assert torch.equal(late(images(2, size=48)), early(images(2, size=48)))
    spec = pooling_spec(late)
    assert spec is not None
    assert (spec.schedule.patch_tokens, spec.schedule.tokens) == (144, (108, 72, 72, 36))
    assert "set_input_size" not in vars(unpool(late))


def test_an_input_size_that_is_refused_changes_nothing() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    before = output(model)
    with pytest.raises(TypeError):
        model.set_input_size(colour="red")
    assert torch.equal(output(model), before)


def test_saved_and_loaded_at_another_size(tmp_path: Path) -> None:
    save(pool(tiny_vit(), [48, 32, 32, 16]), tmp_path / "mine")
    model = load(str(tmp_path / "mine"), img_size=48).model
    spec = pooling_spec(model)
    assert spec is not None
    assert spec.schedule.tokens == (108, 72, 72, 36)
    save(model, tmp_path / "larger")
    again = load(str(tmp_path / "larger")).model
    with torch.no_grad():
        batch = images(2, size=48)
        assert torch.equal(again.eval()(batch), model.eval()(batch))


def test_a_tracer_of_torch_fx_is_told_what_to_do() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    with pytest.raises(TpcliError, match=r"vision_transformer\.Block"):
        torch.fx.symbolic_trace(model, concrete_args={"attn_mask": None, "is_causal": False})


@pytest.mark.long
@pytest.mark.parametrize("kind", some_of(["avg"], ["token", "avg"]))
def test_compiled_without_a_break(kind: str) -> None:
    model = pool(tiny_vit(global_pool=kind, depth=2), [50, 30], metric="keys")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()), rtol=0, atol=1e-4)
        with trace(model) as record:
            compiled(images())
    assert len(record.assignments) == 2
