"""A linear head on a frozen backbone: its features are computed once where nothing is augmented."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tpcli.data import UNREADABLE, ImageData
from tpcli.errors import UserError
from tpcli.evaluation.answers import Answers, chunks, collect, features_of
from tpcli.evaluation.choose import Task
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores, scores
from tpcli.models.load import LoadedModel

from .data import TrainingData, seeded


def give_head(loaded: LoadedModel, data: TrainingData, seed: int) -> None:
    """Give a model without a head a linear one for the classes of the data, in place.

    The start weights follow from `seed` alone, so they are the same in every process and run.
    """
    model: Any = loaded.model
    if model.num_classes == 0 and data.train.classes:
        with seeded(seed):
            model.reset_classifier(len(data.train.classes))


def linear_head(loaded: LoadedModel) -> nn.Linear:
    """The head of a model.

    Raises:
        UserError: there is none, or not a single linear one.
    """
    model: Any = loaded.model
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"{loaded.name} has no single linear head, which `freeze=backbone` trains; give "
            "`num_classes`, or leave `freeze` out."
        )
    return head


def freeze_backbone(loaded: LoadedModel) -> nn.Linear:
    """Let only the head be trained; returns it.

    Raises:
        UserError: as `linear_head`.
    """
    head = linear_head(loaded)
    loaded.model.requires_grad_(False)
    return head.requires_grad_()


class FeatureRows(Dataset[tuple[Tensor, int]]):
    """Features of images, (D,) each, with their targets; UNREADABLE where there are none."""

    def __init__(self, answers: Answers, data: ImageData) -> None:
        bad = set(answers.unreadable)
        names = data.names or [f"image {i}" for i in range(data.count or 0)]
        self.answers = answers
        self.count = len(names)
        readable = [i for i, name in enumerate(names) if name not in bad]
        self.index = {image: row for row, image in enumerate(readable)}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, image: int) -> tuple[Tensor, int]:
        row = self.index.get(image)
        if row is None:
            return torch.empty(0), UNREADABLE
        return torch.from_numpy(self.answers.rows[row]), int(self.answers.targets[row])


class HeadMeasurer:
    """Measures top-1 of a model from the features that go into its head."""

    def __init__(self, model: nn.Module, task: Task, run: RunOptions) -> None:
        self.task = task
        self.answers = collect(model, task.data, features_of, run)

    def measure(self, model: Any) -> Scores:
        """The scores of `model`, whose backbone is that of all others."""
        head, found = model.get_classifier(), self.answers
        device = head.weight.device
        with torch.inference_mode():
            logits = torch.cat([head(rows.to(device)).cpu() for (rows,) in chunks(found.rows)])
        each = logits.argmax(1).numpy() == found.targets
        return scores("top1", each, found.images_per_second, found.unreadable)
