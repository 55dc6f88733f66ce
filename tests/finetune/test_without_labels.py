"""Training that learns from the unpooled model alone: without labels, or without a head."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import images, tiny_vit
from tpcli import pool, unpool
from tpcli.finetune import Recipe
from tpcli.finetune.objective import DenseFeatures, Objective, feature_distance, soft_divergence


@pytest.mark.parametrize("arguments", [{}, {"reg_tokens": 2}, {"global_pool": "avg"}])
@pytest.mark.parametrize("schedule", ["none", "tokens:30,11,11"])
def test_dense_features_are_the_models_own(arguments: dict[str, Any], schedule: str) -> None:
    model = pool(tiny_vit(depth=3, num_classes=0, **arguments), schedule)
    batch = images()
    with torch.no_grad():
        features, patches = DenseFeatures(model)(batch)
        assert torch.equal(features, model(batch))
        _, (grid,) = model.forward_intermediates(batch, 1, norm=True)
    assert torch.equal(patches, grid.flatten(2).transpose(1, 2))


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
    answering = DenseFeatures(student)
    loss = objective(answering(batch), targets, batch)
    loss.backward()
    assert float(loss.detach()) > 0
    assert student.patch_embed.proj.weight.grad is not None
    assert teacher.patch_embed.proj.weight.grad is None
    unpool(student)
    same = objective(answering(batch), targets, batch).detach()
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
