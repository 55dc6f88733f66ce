"""Training that learns from the unpooled model alone: without labels, or without a head."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import images, tiny_vit
from tpcli import pool, unpool
from tpcli.finetune import Recipe
from tpcli.finetune.objective import Objective, feature_distance, final_tokens, soft_divergence


@pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 2}, {"global_pool": "avg"}])
def test_tokens_are_spread_back_to_their_patches(arguments: dict[str, int | str]) -> None:
    model = tiny_vit(depth=3, num_classes=0, **arguments)
    batch = images()
    with torch.no_grad(), final_tokens(model) as plain:
        model(batch)
    prefix = model.num_prefix_tokens
    assert torch.equal(plain.spread(), model.forward_features(batch)[:, prefix:])
    pool(model, "tokens:30,11,11")
    with torch.no_grad(), final_tokens(model) as pooled:
        model(batch)
    spread = pooled.spread()
    assert spread.shape == (2, 64, 48)
    tokens = pooled.caught[0][:, prefix:]
    assert all(len(spread[i].unique(dim=0)) == 11 for i in range(2))
    assert torch.equal(spread[0, 0], tokens[0, 0])  # clusters are in order of their first patch
    assert not model.norm._forward_hooks


def test_the_distance_of_features() -> None:
    ours, wanted = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    cosine = F.cosine_similarity(ours, wanted, dim=-1).mean()
    smooth = F.smooth_l1_loss(ours, wanted)
    expected = 0.9 * (1 - cosine) + 0.1 * smooth
    torch.testing.assert_close(feature_distance(ours, wanted), expected)
    assert float(feature_distance(ours, ours)) == pytest.approx(0, abs=1e-6)


def test_features_and_tokens_are_held_against_the_teachers() -> None:
    teacher, student = tiny_vit(depth=2, num_classes=0), tiny_vit(depth=2, num_classes=0)
    pool(student, "tokens:20,9")
    objective = Objective(Recipe(epochs=1), 0, teacher, nullcontext, "features")
    batch, targets = objective.mix(images(4), torch.full((4,), -1), 0)
    with objective.watching(student):
        loss = objective(student(batch), targets, batch)
    loss.backward()
    assert float(loss.detach()) > 0
    assert student.patch_embed.proj.weight.grad is not None
    assert teacher.patch_embed.proj.weight.grad is None
    unpool(student)
    with objective.watching(student):
        same = objective(student(batch), targets, batch).detach()
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_logits_alone_are_learned_from_where_there_are_no_labels() -> None:
    teacher, batch = torch.nn.Linear(4, 3), torch.randn(6, 4)
    recipe = Recipe(epochs=20)
    objective = Objective(recipe, 3, teacher, nullcontext, "logits")
    logits = torch.randn(6, 3, requires_grad=True)
    _, targets = objective.mix(images(6, 8), torch.full((6,), -1), 0)
    assert targets.shape == (6, 3)
    loss = objective(logits, targets, batch)
    torch.testing.assert_close(loss, soft_divergence(logits, teacher(batch), 1.0))
    assert teacher.weight.grad is None
