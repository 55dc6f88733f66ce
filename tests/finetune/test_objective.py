"""The loss."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tpcli.finetune import Recipe
from tpcli.finetune.objective import Objective, soft_divergence
from tpcli.finetune.setup import set_drop_path


def test_divergence_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    logits, wanted, t = torch.randn(5, 7), torch.randn(5, 7), 2.5
    p, q = (wanted / t).softmax(1), (logits / t).softmax(1)
    naive = t * t * sum(float(p[i] @ (p[i] / q[i]).log()) for i in range(5)) / 5
    assert float(soft_divergence(logits, wanted, t)) == pytest.approx(naive, rel=1e-5)
    assert float(soft_divergence(wanted, wanted, t)) == pytest.approx(0, abs=1e-6)


def test_the_teacher_has_its_share_and_gets_no_gradient() -> None:
    torch.manual_seed(0)
    recipe = Recipe(mixup=0.0, cutmix=0.0, smoothing=0.0, distill_alpha=0.25)
    teacher, images = nn.Linear(4, 3), torch.randn(6, 4)
    logits, targets = torch.randn(6, 3, requires_grad=True), torch.randint(3, (6,))
    loss = Objective(recipe, 3, teacher, nullcontext)(logits, targets, images)
    plain = F.cross_entropy(logits, targets)
    soft = soft_divergence(logits, teacher(images), recipe.distill_temperature)
    torch.testing.assert_close(loss, 0.75 * plain + 0.25 * soft)
    loss.backward()
    assert teacher.weight.grad is None


def test_smoothing_without_mixing() -> None:
    recipe = Recipe(mix_prob=0.0, smoothing=0.2)
    logits, targets = torch.randn(6, 3), torch.randint(3, (6,))
    objective = Objective(recipe, 3, None, nullcontext)
    assert objective.mix(logits, targets, 0)[1] is targets
    wanted = F.cross_entropy(logits, targets, label_smoothing=0.2)
    torch.testing.assert_close(objective(logits, targets, logits), wanted)


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_small_plus_patch16_dinov3", "vit_tiny_patch16_224"]
)
def test_drop_path_is_what_timm_would_have_built(name: str) -> None:
    size = {"img_size": 32} if name != "test_vit" else {}
    with torch.device("meta"):
        ours = timm.create_model(name, depth=3, **size)
        theirs = timm.create_model(name, depth=3, drop_path_rate=0.2, **size)
    set_drop_path(ours, 0.2)
    assert str(ours) == str(theirs)
    set_drop_path(ours, 0.0)
    assert "DropPath" not in str(ours)
