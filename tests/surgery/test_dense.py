"""Dense features: each patch has the token that stands for it, and what set it apart from that."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import tpcli
from tests.helpers import architectures as zoo
from tests.helpers.dense_reference import assert_as_by_hand
from tests.helpers.models import POSITIONS, SMALL, VARIANTS, images, tiny_vit
from tpcli.config.methods import METHODS
from tpcli.errors import TpcliError
from tpcli.flops import count_flops
from tpcli.surgery import PooledTokens

SCHEDULE = [64, 36, 16, 4]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_as_by_hand(method: str) -> None:
    assert_as_by_hand(tpcli.pool(tiny_vit(reg_tokens=2), SCHEDULE, method), images())


@pytest.mark.parametrize(("variant", "position"), POSITIONS)
def test_every_block_and_place_as_by_hand(variant: str, position: str) -> None:
    model = tpcli.pool(tiny_vit(**VARIANTS[variant]), SCHEDULE, position=position)
    assert_as_by_hand(model, images())


@pytest.mark.parametrize("name", ["vit_small_patch16_rope_224", "beit_base_patch16_224"])
def test_dropped_patches_where_blocks_ask_for_positions(name: str) -> None:
    model = tpcli.pool(zoo.small(name), [24, 12, 6], "random")
    assert_as_by_hand(model, zoo.images(model))


def test_a_dropped_patch_has_the_token_nearest_to_it() -> None:
    model = tpcli.pool(tiny_vit(), [64, 20, 20, 20], "random", metric="tokens")
    seen: list[tuple[Tensor, Tensor]] = []
    layer = model.blocks[1].token_pooling
    layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out.x)))
    with torch.no_grad(), tpcli.trace(model) as record:
        model(images())
    before, after = (x[:, 1:] for x in seen[0])
    assert torch.equal(torch.cdist(before, after).argmin(2), record.assignments[0])
    assert torch.equal(record.dropped[0], torch.cdist(before, after).amin(2) > 0.1)


def test_without_pooling_it_is_timms_own() -> None:
    model, x = tiny_vit(), images()
    with torch.no_grad():
        final, features = model.forward_intermediates(x)
        for again in (tpcli.pool(model, "none"), tpcli.unpool(tpcli.pool(model, SCHEDULE))):
            new_final, new_features = again.forward_intermediates(x)
            assert torch.equal(final, new_final)
            assert all(map(torch.equal, features, new_features))


CALLS: list[dict[str, Any]] = [
    {},
    {"indices": 2},
    {"indices": [0, -1]},
    {"indices": [1], "stop_early": True},
    {"norm": True, "return_prefix_tokens": True},
    {"output_fmt": "NLC", "intermediates_only": True},
    {"output_dict": True},
    {"output_dict": True, "return_prefix_tokens": True, "intermediates_only": True},
]


@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_answers_are_of_timms_form(arguments: dict[str, Any]) -> None:
    """The same structure and shapes, but for the final features, which are fewer tokens."""
    model, x = tiny_vit(), images()
    with torch.no_grad():
        plain = model.forward_intermediates(x, **arguments)
        pooled = tpcli.pool(model, SCHEDULE).forward_intermediates(x, **arguments)
        if not arguments.get("intermediates_only") and not arguments.get("stop_early"):
            final = pooled["image_features"] if isinstance(pooled, dict) else pooled[0]
            assert torch.equal(final, model.forward_features(x))
            assert torch.equal(model.forward_head(final), model(x))
    if isinstance(plain, dict):
        plain.pop("image_features", None), pooled.pop("image_features", None)
    elif not arguments.get("intermediates_only"):
        plain, pooled = plain[1], pooled[1]
    assert tree_map(lambda t: t.shape, pooled) == tree_map(lambda t: t.shape, plain)


def test_forms_agree_with_each_other() -> None:
    model, x = tpcli.pool(tiny_vit(reg_tokens=2), SCHEDULE), images()
    with torch.no_grad():
        every = model.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=True)
        rows = model.forward_intermediates(x, intermediates_only=True, output_fmt="NLC")
        normed = model.forward_intermediates(x, [3], norm=True, intermediates_only=True)[0]
        early = model.forward_intermediates(x, [1], intermediates_only=True, stop_early=True)[0]
        late = model.forward_intermediates(x, [1], intermediates_only=True)[0]
        layers = model.get_intermediate_layers(x, [0, 2], reshape=True)
    for (grid, prefix), row in zip(every, rows, strict=True):
        assert torch.equal(grid.flatten(2).transpose(1, 2), row)
        assert prefix.shape == (2, 3, 48)
    norm = type(model.norm).forward(model.norm, rows[3])
    torch.testing.assert_close(normed.flatten(2).transpose(1, 2), norm)
    assert torch.equal(early, every[1][0])
    assert torch.equal(late, every[1][0])
    assert torch.equal(layers[1], every[2][0])


@pytest.mark.parametrize(
    "arguments", [{"indices": [4]}, {"indices": 9}, {"output_fmt": "NHWC"}, {"colour": "red"}]
)
def test_bad_arguments_are_timms_own_errors(arguments: dict[str, Any]) -> None:
    model = tiny_vit()
    with pytest.raises((AssertionError, TypeError)) as own:
        model.forward_intermediates(images(), **arguments)
    with pytest.raises(own.type) as pooled:
        tpcli.pool(model, SCHEDULE).forward_intermediates(images(), **arguments)
    assert str(pooled.value) == str(own.value)


def test_a_mask_is_refused_as_in_the_forward() -> None:
    model = tpcli.pool(tiny_vit(), SCHEDULE)
    with pytest.raises(TpcliError, match="mask"):
        model.forward_intermediates(images(), attn_mask=torch.zeros(65, 65))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_member(checkpointing: bool) -> None:
    model = tpcli.pool(tiny_vit(), SCHEDULE).train()
    model.set_grad_checkpointing(checkpointing)
    x = images().requires_grad_()
    loss = model.forward_intermediates(x, [3], intermediates_only=True)[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    assert (gradient.abs().amax(1).reshape(2, 8, 4, 8, 4).amax((2, 4)) > 0).all()
    model.set_grad_checkpointing(not checkpointing)
    again = model.forward_intermediates(x, [3], intermediates_only=True)[0].square().sum()
    torch.testing.assert_close(torch.autograd.grad(again, x)[0], gradient)


def test_another_image_size() -> None:
    model = tpcli.pool(tiny_vit(dynamic_img_size=True), SCHEDULE)
    x = torch.randn(2, 3, 48, 24)
    with torch.no_grad():
        features = model.forward_intermediates(x, intermediates_only=True)
    assert [f.shape for f in features] == [(2, 48, 12, 6)] * 4
    assert_as_by_hand(model, x)


def test_autocast() -> None:
    model = tpcli.pool(tiny_vit(), SCHEDULE)
    with torch.no_grad():
        full = model.forward_intermediates(images(), 1, intermediates_only=True)[0]
        with torch.autocast("cpu", torch.bfloat16):
            half = model.forward_intermediates(images(), 1, intermediates_only=True)[0]
    assert torch.cosine_similarity(half.float(), full).mean() > 0.9


@pytest.mark.long
def test_compiled_without_a_break() -> None:
    model = tpcli.pool(tiny_vit(depth=1), [30], "random")

    def last(x: Tensor) -> Tensor:
        return model.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0]

    compiled = torch.compile(last, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), last(images()), rtol=0, atol=1e-4)


def test_copies_are_independent() -> None:
    model = tpcli.pool(tiny_vit(), SCHEDULE)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model.forward_intermediates(images())[1]
        for parameter in model.parameters():
            parameter.zero_()
        assert all(map(torch.equal, twin.forward_intermediates(images())[1], expected))


def test_plain_forwards_follow_no_patches() -> None:
    model = tpcli.pool(tiny_vit(), SCHEDULE)
    seen: list[PooledTokens] = []
    for block in model.blocks[1:]:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model(images())
        assert [out.patches for out in seen] == [None] * 3
        del seen[:]
        model.forward_intermediates(images(), [1])
    assert [out.patches is None for out in seen] == [False, True, True]


def test_features_only() -> None:
    getter = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=[1, 3], **SMALL
    ).eval()
    with torch.no_grad():
        plain = getter(images())
        assert tpcli.pool(getter, [50, 40, 30, 20]) is getter
        pooled = getter(images())
        assert [p.shape for p in pooled] == [p.shape for p in plain]
        assert not torch.equal(pooled[1], plain[1])
        assert [b.tokens_out for b in count_flops(getter).blocks] == [50, 40, 30, 20]
        assert all(map(torch.equal, tpcli.unpool(getter)(images()), plain))


def test_spread() -> None:
    tokens = torch.arange(8.0).view(1, 4, 2)
    dense = tpcli.spread(tokens, torch.tensor([[3, 0, 0]]))
    assert dense.tolist() == [[[6.0, 7.0], [0.0, 1.0], [0.0, 1.0]]]
    with pytest.raises(ValueError, match=r"\(1, 4, 2\).*\(2, 3\)"):
        tpcli.spread(tokens, torch.zeros(2, 3, dtype=torch.int64))
