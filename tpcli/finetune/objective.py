"""What is minimised: cross entropy on mixed images, and the distance to the unpooled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
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
from tpcli.surgery import pooling_spec, trace
from tpcli.surgery.trace import Trace

from .data import TrainingData, seeded

LABELS, LOGITS, FEATURES = "labels", "logits", "features"
"""Labels, with the unpooled model beside them or not; what the unpooled model answers, alone; its
features and patch tokens, where it has no head."""


def source_of(data: TrainingData, head: Head) -> str:
    """What there is to learn from."""
    if head.size == 0:
        return FEATURES
    return LOGITS if data.train.unlabelled else LABELS


def measure_of(data: TrainingData, head: Head) -> str:
    """What says how good weights are."""
    if head.size == 0:
        return "similarity"
    return "agreement" if data.validation.unlabelled else "top1"


def check_distills(loaded: LoadedModel, data: TrainingData, recipe: Recipe, source: str) -> None:
    """Raise where there are no labels to learn from, and nothing else either.

    Raises:
        UserError: nothing is pooled, or distillation is off.
    """
    spec = pooling_spec(loaded.model)
    why = f"{loaded.name} has no head" if source == FEATURES else f"{data.train.spec} has no labels"
    if recipe.distill is False:
        raise UserError(
            f"{why}, so it can only learn from the model before pooling; leave out `distill=False`."
        )
    if spec is None or not spec.schedule.pools:
        raise UserError(
            f"{why} and nothing is pooled, so there is nothing to learn; give a `schedule`."
        )


@dataclass
class FinalTokens:
    """What left the final norm in one forward pass, and where each patch went."""

    prefix: int
    trace: Trace
    caught: list[Tensor] = field(default_factory=list)

    def spread(self) -> Tensor:
        """For each patch the token that stands for it: (B, N_0, C)."""
        tokens = self.caught[-1][:, self.prefix :]
        sources = self.trace.sources
        if not sources:
            return tokens
        index = sources[-1].unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return tokens.gather(1, index)


@contextmanager
def final_tokens(model: nn.Module) -> Iterator[FinalTokens]:
    """Catch the tokens of the one forward pass in the body."""
    norm: nn.Module = model.norm  # type: ignore[assignment]
    with trace(model) as traced:
        found = FinalTokens(int(model.num_prefix_tokens), traced)  # type: ignore[arg-type]

        def catch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.caught.append(output)

        hook = norm.register_forward_hook(catch)
        try:
            yield found
        finally:
            hook.remove()


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
        self.teacher = teacher
        self.autocast = autocast
        self.source = source
        self.tokens: FinalTokens | None = None
        self.mixup: Mixup | None = None
        self.loss: nn.Module = LabelSmoothingCrossEntropy(recipe.smoothing)
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

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While `model` runs on what is then scored."""
        if self.source != FEATURES:
            yield
            return
        with final_tokens(model) as self.tokens:
            yield

    def __call__(self, answer: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch: (B, classes) or (B, D), what `mix` returned -> ()."""
        if self.source == FEATURES:
            return self._of_features(answer, images)
        wanted = None if self.teacher is None else self._wanted(images)
        if self.source == LOGITS:
            assert wanted is not None
            return soft_divergence(answer.float(), wanted, self.recipe.distill_temperature)
        loss: Tensor = self.loss(answer.float(), targets)
        if wanted is None:
            return loss
        alpha = self.recipe.distill_alpha
        return (1 - alpha) * loss + alpha * soft_divergence(
            answer.float(), wanted, self.recipe.distill_temperature
        )

    def _wanted(self, images: Tensor) -> Tensor:
        """What the teacher answers."""
        assert self.teacher is not None
        with torch.no_grad(), self.autocast():
            wanted: Tensor = self.teacher(images)
        return wanted.float()

    def _of_features(self, features: Tensor, images: Tensor) -> Tensor:
        assert self.teacher is not None
        assert self.tokens is not None
        with final_tokens(self.teacher) as theirs:
            wanted = self._wanted(images)
        return feature_distance(features, wanted) + feature_distance(
            self.tokens.spread(), theirs.spread()
        )


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
