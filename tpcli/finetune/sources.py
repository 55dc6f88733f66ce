"""What there is to learn from, and what says how good weights are."""

from __future__ import annotations

from tpcli.data import Head
from tpcli.errors import UserError
from tpcli.models import LoadedModel
from tpcli.recipe import Recipe
from tpcli.surgery import pooling_spec

from .data import TrainingData

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
