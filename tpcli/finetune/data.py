"""Training images: opened and transformed through timm, and held against the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import create_dataset, create_transform
from torch.utils.data import IterableDataset

from tpcli import data
from tpcli.data import ImageData
from tpcli.errors import UserError
from tpcli.recipe import Recipe

STREAMS = ("wds", "tfds", "hfids")
LARGEST_CROP_RATIO = 4 / 3


@dataclass(frozen=True)
class TrainingData:
    """Images to train on (augmented, normalized, float32) and to measure on (as `tpcli eval`)."""

    train: ImageData
    validation: ImageData

    @property
    def is_stream(self) -> bool:
        """Whether training images come in the order of their files, without random access."""
        return isinstance(self.train.images, IterableDataset)


def open_data(
    spec: str,
    config: dict[str, Any],
    recipe: Recipe,
    *,
    train_split: str = "train",
    split: str = "validation",
    data_dir: str | None = None,
    download: bool = False,
    limit: int | None = None,
) -> TrainingData:
    """Open the training split of `spec` for a recipe, and the split to measure on.

    Where there are several processes, `join` them first.

    Args:
        spec, data_dir, download: as for `tpcli.data.create`. config: the model's data config.
        limit: at most so many images of each split, spread evenly.

    Raises:
        UserError: a split is missing, or the two don't have the same classes.
    """
    is_stream = spec.partition("/")[0] in STREAMS and not Path(spec).exists()
    if is_stream and limit is not None:
        raise UserError(
            f"--limit {limit} has no effect on {spec}, which is trained on as a stream; leave it "
            "out, or use a folder or a .tar file."
        )
    validation = data.create(
        spec, config, split=split, data_dir=data_dir, download=download, limit=limit
    )
    transform = training_transform(config, recipe, is_demo=spec == "demo")
    if is_stream:
        train = _stream(spec, train_split, config, transform, data_dir, download, recipe.seed)
    else:
        train = data.create(
            spec,
            config,
            split=train_split,
            data_dir=data_dir,
            download=download,
            limit=limit,
            transform=transform,
        )
    if train.root is not None and train.root == validation.root and split != train_split:
        raise UserError(
            f"data {spec!r} has no {train_split!r} split: the same images would be trained on and "
            f"measured on; make two folders in it, {train_split}/ and {split}/."
        )
    if train.classes and validation.classes:
        _check_same_classes(spec, train.classes, validation.classes)
    return TrainingData(train, validation)


def training_transform(config: dict[str, Any], recipe: Recipe, is_demo: bool = False) -> Any:
    """timm's training transform: a PIL image to normalized float32 (3, H, W)."""
    hflip = recipe.hflip if recipe.hflip is not None else 0.0 if is_demo else 0.5
    keys = ("input_size", "interpolation", "mean", "std")
    arguments: dict[str, Any] = {key: config[key] for key in keys} | {"color_jitter": None}
    if recipe.crop_scale == 1 and hflip == 0 and recipe.aa == "none" and recipe.erasing == 0:
        return create_transform(**arguments, is_training=True, no_aug=True)
    try:
        return create_transform(
            **arguments,
            is_training=True,
            scale=(recipe.crop_scale, 1.0),
            ratio=(1 / LARGEST_CROP_RATIO, LARGEST_CROP_RATIO) if recipe.crop_scale < 1 else (1, 1),
            hflip=hflip,
            auto_augment=None if recipe.aa == "none" else recipe.aa,
            re_prob=recipe.erasing or 0.0,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"--aa {recipe.aa!r} is not known to timm ({error or 'unknown form'}); "
            "use a form like rand-m9-mstd0.5-mmax9-inc1, or none."
        ) from error


def check_data(source: TrainingData, recipe: Recipe, processes: int) -> None:
    """Raise unless the data can be cut into this recipe's batches over so many processes."""
    train, count = source.train, source.train.count
    if train.classes and len(train.classes) < 2:
        raise UserError(
            f"{train.spec} has one class only ({train.classes[0]}); training needs 2 or more."
        )
    if not count:
        raise UserError(
            f"{train.spec} does not say how many images it has; training needs to know."
        )
    if recipe.batch_size > count:
        raise UserError(
            f"--batch-size {recipe.batch_size} is larger than the training data of {train.spec}, "
            f"{count} images; use at most {count}."
        )
    shards = processes * recipe.grad_accumulation
    part = 2 if recipe.mixes or shards > 1 else 1
    if recipe.batch_size % (shards * part):
        raise UserError(
            f"--batch-size {recipe.batch_size} can't be cut into {shards} equal parts of an even "
            "number of images (processes x --grad-accumulation); "
            f"use a multiple of {part * shards}."
        )


def _check_same_classes(spec: str, train: Sequence[str], validation: Sequence[str]) -> None:
    odd = sorted(set(train) ^ set(validation))
    if odd:
        raise UserError(
            f"the splits of {spec!r} have different classes: {odd[0]!r} is in one of them only; "
            "make their folders agree."
        )


def _stream(
    spec: str,
    split: str,
    config: dict[str, Any],
    transform: Any,
    data_dir: str | None,
    download: bool,
    seed: int,
) -> ImageData:
    try:
        images: Any = create_dataset(
            spec, root=data_dir, split=split, is_training=True, download=download, seed=seed
        )
    except (AssertionError, ImportError, RuntimeError, ValueError, OSError, TypeError) as error:
        raise UserError(
            f"data set {spec!r}, split {split!r}, could not be opened: {str(error) or 'unknown'}; "
            "check the name, --data-dir and --train-split, or add --download."
        ) from error
    images.transform = transform
    return ImageData(spec, split, images, (), list(getattr(images, "classes", ())), config, None)
