"""What is minimised: cross entropy on mixed images, and the distance to the unpooled model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from tpcli.config.recipe import Recipe
from tpcli.data import Head
from tpcli.errors import UserError
from tpcli.models.load import LoadedModel
from tpcli.surgery import pooling_spec

from .data import TrainingData, seeded

LABELS, LOGITS, FEATURES = "labels", "logits", "features"
"""Labels, with the unpooled model beside them or not; what the unpooled model answers, alone; its
image and patch features, alone."""


def source_of(data: TrainingData, head: Head, recipe: Recipe) -> str:
    """What there is to learn from."""
    if head.size == 0 or recipe.distill_target == "dense":
        return FEATURES
    return LOGITS if data.train.unlabelled else LABELS


def measure_of(data: TrainingData, head: Head, recipe: Recipe) -> str:
    """What says how good weights are."""
    if recipe.distill_target == "dense":
        return "dense"
    if head.size == 0:
        return "similarity"
    return "agreement" if data.validation.unlabelled else "top1"


def check_distills(loaded: LoadedModel, data: TrainingData, recipe: Recipe, source: str) -> None:
    """Raise where there are no labels to learn from, and nothing else either.

    Raises:
        UserError: nothing is pooled, or distillation is off.
    """
    spec = pooling_spec(loaded.model)
    why = f"{data.train.spec} has no labels"
    if recipe.distill_target == "dense":
        why = "`distill_target=dense` asks for no labels"
    elif source == FEATURES:
        why = f"{loaded.name} has no head"
    if recipe.freeze:
        raise UserError(f"{why}, and `freeze=backbone` trains a head on labels; leave it out.")
    if recipe.distill is False:
        raise UserError(
            f"{why}, so it can only learn from the model before pooling; leave out `distill=False`."
        )
    if spec is None or not spec.schedule.pools:
        raise UserError(
            f"{why} and nothing is pooled, so there is nothing to learn; give a `schedule`."
        )


class DenseFeatures(nn.Module):
    """A model that answers with features: what goes into its head, and one for each patch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, D), (B, N_0, C), the latter behind the final norm."""
        model: Any = self.model
        final, (patches,) = model.forward_intermediates(images, 1, norm=True, output_fmt="NLC")
        return model.forward_head(final, pre_logits=True), patches


COSINE = 0.9
"""Share of the angle in the distance of features; the rest is their length and scale."""


class Objective:
    """Mixes a batch, and scores the model's answer to it.

    teacher: the unpooled model, or None. It sees the very same mixed images.
    autocast: makes the context in which the teacher runs. source: LABELS, LOGITS or FEATURES.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_classes: int,
        teacher: nn.Module | None,
        autocast: Callable[[], AbstractContextManager[object]],
        source: str = LABELS,
    ) -> None:
        self.recipe = recipe
        if teacher is not None and source == FEATURES:
            teacher = DenseFeatures(teacher)
        self.teacher = teacher
        self.autocast = autocast
        self.source = source
        self.mixup: Mixup | None = None
        self.loss: Callable[[Tensor, Tensor], Tensor] = LabelSmoothingCrossEntropy(recipe.smoothing)
        if recipe.mixes:
            self.loss = SoftTargetCrossEntropy()
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mix_prob,
                label_smoothing=recipe.smoothing,
                num_classes=max(num_classes, 1),
            )

    def mix(self, images: Tensor, targets: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        """Mix a batch in pairs, the same way for the same `key` in every process.

        images: (B, 3, H, W), changed in place. targets: (B,). Returns both; where batches are
        mixed, targets are (B, classes).
        """
        if self.source != LABELS:
            targets = torch.zeros_like(targets)
        if self.mixup is None:
            return images, targets
        with seeded(self.recipe.seed, *key):
            mixed: tuple[Tensor, Tensor] = self.mixup(images, targets)
        return mixed

    def __call__(self, answer: Any, targets: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch: (B, classes) or what `DenseFeatures` returns, what `mix` returned
        -> ()."""
        if self.teacher is None:
            return self.loss(answer.float(), targets)
        with torch.no_grad(), self.autocast():
            wanted = self.teacher(images)
        if self.source == FEATURES:
            pairs = zip(answer, wanted, strict=True)
            return torch.stack([feature_distance(ours, theirs) for ours, theirs in pairs]).sum()
        alpha, temperature = self.recipe.distill_alpha, self.recipe.distill_temperature
        divergence = soft_divergence(answer.float(), wanted.float(), temperature)
        if self.source == LOGITS:
            return divergence
        loss = self.loss(answer.float(), targets)
        return (1 - alpha) * loss + alpha * divergence


def feature_distance(ours: Tensor, wanted: Tensor) -> Tensor:
    """0.9 (1 - cosine) + 0.1 smooth L1, the mean over vectors (AM-RADIO, Ranzinger et al., 2024).

    Both: (..., D). Returns ().
    """
    ours, wanted = ours.float(), wanted.float()
    angle = 1 - F.cosine_similarity(ours, wanted, dim=-1).mean()
    return COSINE * angle + (1 - COSINE) * F.smooth_l1_loss(ours, wanted)


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
