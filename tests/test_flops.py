"""FLOPs against published numbers and closed forms; nothing is left out silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers.models import VARIANTS, images, tiny_vit
from tests.helpers.selection import some_of
from tpcli import pool, unpool
from tpcli.errors import TpcliError, UserError
from tpcli.flops import CONVENTION, COUNTS, count_flops
from tpcli.pooling import methods
from tpcli.surgery.geometry import POOLING_NAME

SCHEDULE = [50, 40, 30, 20]
C, P = 48, 1
"""Channels and prefix tokens of `tiny_vit`."""


def block_flops(tokens: int, channels: int = C) -> int:
    """Two norms, attention and MLP; fvcore takes 5 FLOPs per element of a LayerNorm."""
    norms = 2 * 5 * tokens * channels
    projections = 4 * tokens * channels**2
    attention = 2 * tokens**2 * channels
    mlp = 8 * tokens * channels**2
    return norms + projections + attention + mlp


@pytest.mark.parametrize(
    ("name", "gflops"),
    [("deit_tiny_patch16_224", 1.2584), ("deit_small_patch16_224", 4.6083)],
)
def test_known_models(name: str, gflops: float) -> None:
    count = count_flops(timm.create_model(name))
    assert round(count.total / 1e9, 4) == gflops
    assert count.pooling == 0


def test_closed_form_of_a_plain_vit() -> None:
    count = count_flops(tiny_vit())
    stem = 64 * (3 * 4 * 4) * C
    head = 5 * 65 * C + C * 10
    assert count.total == stem + 4 * block_flops(65) + head
    assert [b.flops for b in count.blocks] == [block_flops(65)] * 4
    assert [(b.tokens_in, b.tokens_out, b.pooling_flops) for b in count.blocks] == [(64, 64, 0)] * 4
    assert count.params == sum(p.numel() for p in tiny_vit().parameters())


@pytest.mark.parametrize(
    "method", some_of(["ward", "k-means"], [m.name for m in methods() if "metric_dim" in m.options])
)
def test_a_projected_metric_is_counted(method: str) -> None:
    """N C D for the projection; what compares tokens costs no more than without it."""
    schedule = [49, 36, 25, 16]  # which the grid can have
    model = pool(tiny_vit(), schedule, method, metric_dim=8)
    whole = count_flops(pool(tiny_vit(), schedule, method)).blocks
    for i, block in enumerate(count_flops(model).blocks):
        layer = getattr(model.blocks[i], POOLING_NAME)  # type: ignore[index]
        projection = block.tokens_in * layer.projection.numel()
        assert projection < block.pooling_flops <= whole[i].pooling_flops + projection


def test_pooled_blocks_cost_what_their_tokens_cost() -> None:
    """Pooling counted apart, the rest is that of a plain block with fewer tokens."""
    count = count_flops(pool(tiny_vit(), SCHEDULE, position="block"))
    before = [64, *SCHEDULE]
    for i, block in enumerate(count.blocks):
        assert (block.index, block.tokens_in, block.tokens_out) == (i, before[i], before[i + 1])
        assert block.pooling_flops > 0
        assert block.flops - block.pooling_flops == block_flops(P + before[i])
    assert count.pooling == sum(b.pooling_flops for b in count.blocks)


def test_pooling_inside_the_block_saves_its_mlp() -> None:
    count = count_flops(pool(tiny_vit(), [32, 32, 32, 32], position="attention"))
    first = count.blocks[0]
    saved = 32 * (8 * C**2 + 5 * C)
    assert first.flops - first.pooling_flops == block_flops(65) - saved


def test_closed_form_of_k_medoids() -> None:
    """Normalised tokens, an even start and one step, from 64 to 20 tokens."""
    options = {"start": "even", "iterations": 1, "weights": "size", "metric": "normalized"}
    count = count_flops(pool(tiny_vit(), [20] * 4, "k-medoids", **options))
    n = 64
    norm = 4 * n * C  # without affine parameters
    distances = n * n * C
    candidates = n * n  # weights times distances within clusters
    means = n * C
    sums = n  # sizes per cluster
    expected = norm + distances + candidates + means + sums
    assert count.blocks[0].pooling_flops == expected
    assert [b.pooling_flops for b in count.blocks[1:]] == [0, 0, 0]


def test_closed_form_of_ward_with_a_sketch() -> None:
    """Wide tokens, from 64 to 60 in one round: only candidates are compared in all channels."""
    width, n, k = 384, 64, 60
    model = pool(tiny_vit(embed_dim=width, depth=2), [k, k], "ward")
    candidates = 3 * (n - k) + n // 8
    sketch = n * n * 48
    norm = 4 * n * width
    exact = candidates**2 * width
    means_and_sums = n * width + 2 * n  # of tokens; of lengths and sizes
    assert count_flops(model).blocks[0].pooling_flops == norm + sketch + exact + means_and_sums


def test_scores_cost_a_second_product_of_queries_and_keys() -> None:
    by_size = count_flops(pool(tiny_vit(), [20] * 4, weights="size"))
    by_score = count_flops(pool(tiny_vit(), [20] * 4, weights="significance"))
    assert by_score.total - by_size.total == 65**2 * C


@pytest.mark.parametrize("variant", some_of(["class token", "map, no class token"], VARIANTS))
def test_every_cut_adds_up(variant: str) -> None:
    check_cuts(pool(tiny_vit(**VARIANTS[variant], depth=2), [32, 16], "k-medoids"))


@pytest.mark.long
@pytest.mark.parametrize("method", [method.name for method in methods()])
def test_every_cut_of_every_method_adds_up(method: str) -> None:
    check_cuts(pool(tiny_vit(depth=2), [32, 16], method))


def check_cuts(model: nn.Module) -> None:
    count = count_flops(model)
    assert sum(count.by_op.values()) == count.total
    assert count.by_module[""] == count.total
    children = [name for name, _ in model.named_children()]
    assert sum(count.by_module.get(name, 0) for name in children) <= count.total
    assert sum(b.flops for b in count.blocks) == count.by_module["blocks"]
    assert 0 < count.pooling < count.total


def test_fused_attention_is_counted_as_the_unfused_one() -> None:
    model = tiny_vit()
    fused = count_flops(model)
    assert fused.by_op["scaled_dot_product_attention"] == 4 * 2 * 65**2 * C
    for block in model.blocks:
        block.attn.fused_attn = False
    assert count_flops(model).total == fused.total


def test_convention_is_said() -> None:
    assert "1 multiply-add = 1 FLOP" in CONVENTION


class Inverse(nn.Module):
    """An operator that nobody counts."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x.tanh())


def test_an_unknown_operator_is_an_error() -> None:
    model = tiny_vit()
    model.fc_norm = Inverse()
    with pytest.raises(TpcliError, match="aten::erfinv"):
        count_flops(model)


def test_the_model_is_left_as_it_was() -> None:
    model = pool(tiny_vit(drop_path_rate=0.1), SCHEDULE).train()
    model.set_grad_checkpointing(True)
    model.blocks[1].eval()  # frozen, say
    modes = [module.training for module in model.modules()]
    attributes = set(vars(model))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model)
    assert model.grad_checkpointing
    assert set(vars(model)) == attributes
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes


def test_the_model_is_left_as_it_was_by_an_error() -> None:
    model = tiny_vit().train()
    model.fc_norm = Inverse()
    with pytest.raises(TpcliError):
        count_flops(model)
    assert model.training


def test_counting_does_not_change_results() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    with torch.no_grad():
        before = model(images())
        count_flops(model)
        assert torch.equal(model(images()), before)


def test_training_mode_and_batches_do_not_count() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    evaluated = count_flops(model).total
    assert count_flops(model.train()).total == evaluated


def test_another_input_size() -> None:
    model = tiny_vit(dynamic_img_size=True)
    larger = count_flops(model, (3, 64, 64))
    assert larger.blocks[0].flops == block_flops(257)
    assert (larger.blocks[0].tokens_in, larger.blocks[3].tokens_out) == (256, 256)


def test_counts_are_remembered_by_all_that_they_depend_on() -> None:
    """Each change makes another count, or at least another key; going back finds the first."""

    def count(model: nn.Module) -> tuple[int, int]:
        total = count_flops(model).total
        return total, len(COUNTS)

    COUNTS.clear()
    model: Any = tiny_vit()
    first = count(model)
    assert count(tiny_vit()) == count(model) == first == (first[0], 1)
    half = pool(model, [32] * 4)
    pooled = count(half)
    assert pooled[0] < first[0]
    assert count(pool(model, [32] * 4, iterations=1))[1] == 3
    assert count(unpool(model)) == (first[0], 3)
    changes: list[Callable[[], object]] = [
        lambda: setattr(model, "global_pool", "avg"),
        lambda: setattr(model, "head", nn.Linear(48, 3)),
        lambda: setattr(model.blocks[0], "mlp", nn.Identity()),
        lambda: setattr(model.blocks[1].attn, "fused_attn", False),
        lambda: model.double(),
        lambda: setattr(model, "blocks", model.blocks[:2]),
    ]
    for i, change in enumerate(changes):
        change()
        assert count(model)[1] == 4 + i, i


def test_what_can_not_be_compared_is_counted_each_time() -> None:
    model: Any = tiny_vit()
    first = count_flops(model).total
    attention = model.blocks[0].attn
    own = attention.forward
    attention.forward = lambda x, **kwargs: own(x, **kwargs)
    calls: list[int] = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    model.blocks[1].register_forward_hook(calls_of := _Counter())
    for _ in range(2):
        assert count_flops(model).total == first
    assert calls_of.calls == 2


class _Counter:
    calls = 0

    def __call__(self, *arguments: object) -> None:
        self.calls += 1


def test_a_count_that_is_changed_changes_no_other() -> None:
    model = tiny_vit()
    count = count_flops(model)
    count.by_op.clear()
    assert count_flops(model).by_op


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_cost_the_same(dtype: torch.dtype) -> None:
    model = pool(tiny_vit(), SCHEDULE)
    total = count_flops(model).total
    assert count_flops(model.to(dtype)).total == total


def test_a_wrapped_model_costs_what_it_holds() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    for wrapper in (nn.DataParallel(model), AveragedModel(model), nn.Sequential(model)):
        assert count_flops(wrapper) == count_flops(model)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_another_image_size(name: str) -> None:
    """Each block keeps its share of the tokens, pooled or not."""
    model = tiny_vit(name, dynamic_img_size=True)
    plain = count_flops(model, (3, 48, 48))
    assert [block.tokens_in for block in plain.blocks] == [144] * 4
    pooled = count_flops(pool(model, [48, 32, 32, 16]), (3, 48, 48))
    assert [block.tokens_out for block in pooled.blocks] == [108, 72, 72, 36]
    assert pooled.total < plain.total
    with pytest.raises(UserError, match="3x48x48"):
        count_flops(tiny_vit(), (3, 48, 48))
