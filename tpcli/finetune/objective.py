"""What is minimised: cross entropy on mixed images, and the distance to the unpooled model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from tpcli.recipe import Recipe

from .batches import seeded


class Objective:
    """Mixes a batch, and scores the model's answer to it.

    teacher: the unpooled model, or None. It sees the very same mixed images.
    autocast: makes the context in which the teacher runs.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        teacher: nn.Module | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.recipe = recipe
        self.teacher = teacher
        self.autocast = autocast
        self.mixup: Mixup | None = None
        self.loss: nn.Module = LabelSmoothingCrossEntropy(recipe.smoothing)
        if recipe.mixes:
            self.loss = SoftTargetCrossEntropy()
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mix_prob,
                label_smoothing=recipe.smoothing,
                num_classes=num_classes,
            )

    def mix(self, images: Tensor, targets: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        """Mix a batch in pairs, the same way for the same `key` in every process.

        images: (B, 3, H, W), changed in place. targets: (B,). Returns both; where batches are
        mixed, targets are (B, classes).
        """
        if self.mixup is None:
            return images, targets
        with seeded(self.recipe.seed, *key):
            mixed: tuple[Tensor, Tensor] = self.mixup(images, targets)
        return mixed

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch: (B, classes), what `mix` returned -> ()."""
        loss: Tensor = self.loss(logits.float(), targets)
        if self.teacher is None:
            return loss
        with torch.no_grad(), self.autocast():
            wanted = self.teacher(images)
        alpha = self.recipe.distill_alpha
        return (1 - alpha) * loss + alpha * soft_divergence(
            logits.float(), wanted.float(), self.recipe.distill_temperature
        )


def soft_divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(wanted / T) || softmax(logits / T)), batch mean (Hinton et al., 2015).

    logits, wanted: (B, classes). Returns ().
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(wanted / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
