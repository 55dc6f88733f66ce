"""Which measure a model and its data allow, and on what it is then taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from tpcli.config.choices import check_choice
from tpcli.config.measures import MEASURES
from tpcli.data import Head, ImageData, Unmatched, match_classes, overlap
from tpcli.data.images import Relabelled
from tpcli.errors import UserError

from .run import check_size


@dataclass(frozen=True)
class MeasuredModel:
    """A model and the images that it is to be measured on.

    open_bank: opens the training images for `knn`, preprocessed as `data`; asked only for that.
    """

    model: nn.Module
    name: str
    data: ImageData
    open_bank: Callable[[], ImageData] | None = None


@dataclass(frozen=True)
class Task:
    """What one model is measured by, and on what.

    data: with the targets that the measure wants. bank: for `knn`, the images among which nearest
    ones are sought; bank_of: whose features stand there, the model's own as it is measured
    ("pooled") or the unpooled model's. passed_over: why the first measure is not taken, where none
    was asked for. blocks: for `dense`, those whose features are compared, where they were asked
    for.
    """

    measure: str
    data: ImageData
    bank: ImageData | None = None
    bank_of: str = "pooled"
    passed_over: str = ""
    blocks: tuple[int, ...] | None = None


def choose(
    asked: str | None, candidates: Sequence[MeasuredModel], bank_of: str = "pooled"
) -> list[Task]:
    """A task for each candidate, all of one measure: `asked`, or the first that all of them allow.

    Raises:
        UserError: `asked` is unknown, or a model or its data does not allow it; or labels and head
            agree in part, which is more likely a mistake than data without labels.
    """
    if asked is not None:
        check_choice("measure", asked, MEASURES)
        return [_task(asked, candidate, bank_of) for candidate in candidates]
    passed_over = ""
    for measure in MEASURES:
        try:
            tasks = [_task(measure, candidate, bank_of) for candidate in candidates]
        except Unmatched as error:
            passed_over = passed_over or str(error)
            continue
        return [replace(task, passed_over=passed_over) for task in tasks]
    raise AssertionError("similarity needs neither labels nor a head")


def _task(measure: str, candidate: MeasuredModel, bank_of: str) -> Task:
    model, name, data = candidate.model, candidate.name, candidate.data
    check_size(model, data)
    head = Head.of(model, name)
    if measure == "top1":
        return Task(measure, match_classes(data, head))
    if measure == "agreement" and head.size < 2:
        raise Unmatched(
            f"{name} has no head with classes to agree on; use `measure=similarity`, which needs "
            "none."
        )
    if measure in ("knn", "similarity") and getattr(model, "global_pool", None) == "":
        raise UserError(
            f"{name} has global_pool '', so it gives features for each token and not for the "
            "image; use token, avg or another that its architecture takes."
        )
    if measure == "knn":
        bank = _bank(candidate)
        return Task(measure, _aligned(data, bank), bank, bank_of)
    return Task(measure, data)


def _bank(candidate: MeasuredModel) -> ImageData:
    """The training images, with labels; Unmatched where none are apart from those measured on."""
    data = candidate.data
    if data.unlabelled:
        raise Unmatched(
            f"{data.unlabelled.rstrip('.')}, or use `measure=similarity`, which needs no labels."
        )
    if candidate.open_bank is None:
        raise Unmatched("`measure=knn` needs training images for its bank, and there are none.")
    try:
        bank = candidate.open_bank()
    except UserError as error:
        raise Unmatched(
            f"`measure=knn` needs a training split: {str(error).rstrip('.')}; add one, or use "
            "`measure=similarity`, which needs none."
        ) from error
    if bank.split == data.split or overlap(bank, data):
        raise Unmatched(
            f"data {data.spec!r} has no {bank.split!r} split of its own for `measure=knn`: images "
            "would be found among themselves; make two folders in it, or use `measure=similarity`."
        )
    if bank.unlabelled:
        raise Unmatched(
            f"`measure=knn` needs a training split with labels: {bank.unlabelled.rstrip('.')}."
        )
    if len(bank.classes) == 1:
        raise Unmatched(
            f"the {bank.split} split of {bank.spec} has one class only ({bank.classes[0]}), which "
            "every vote would be for; `measure=knn` needs 2 or more."
        )
    return bank


def _aligned(data: ImageData, bank: ImageData) -> ImageData:
    """`data` with the targets that its classes have in the bank."""
    if data.indices is not None or list(data.classes) == list(bank.classes):
        return data
    missing = sorted(set(data.classes) - set(bank.classes))
    if missing:
        raise UserError(
            f"the splits of {data.spec!r} have different classes: {missing[0]!r} has no image in "
            f"{bank.split}; make their folders agree."
        )
    table = tuple(bank.classes.index(name) for name in data.classes)
    return replace(data, images=Relabelled(data.images, table))
