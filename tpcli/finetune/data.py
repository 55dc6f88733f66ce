"""Training images: opened and transformed through timm, and held against the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.data import create_transform
from torch.utils.data import IterableDataset

from tpcli import data
from tpcli.data import Head, ImageData, match_classes, overlap
from tpcli.data.decoding import Prepared, mode_for
from tpcli.data.opening import open_named
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
    class_map: Mapping[str, int] | None = None,
) -> TrainingData:
    """Open the training split of `spec` for a recipe, and the split to measure on.

    Where there are several processes, `join` them first.

    Args:
        spec: as for `tpcli.data.create`, like what has no word here.
        config: the model's data config.
        limit: at most so many images of each split, spread evenly.

    Raises:
        UserError: a split is missing, or the two don't have the same classes.
    """
    is_stream = spec.partition("/")[0] in STREAMS and not Path(spec).exists()
    if is_stream and limit is not None:
        raise UserError(
            f"`limit={limit}` has no effect on {spec}, which is trained on as a stream; leave it "
            "out, or use a folder or a .tar file."
        )
    validation = data.create(
        spec,
        config,
        split=split,
        data_dir=data_dir,
        download=download,
        limit=limit,
        class_map=class_map,
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
            class_map=class_map,
        )
    if overlap(train, validation) and split != train_split:
        raise UserError(
            f"data {spec!r} has no {train_split!r} split: the same images would be trained on and "
            f"measured on; make two folders in it, {train_split}/ and {split}/."
        )
    if train.classes and validation.classes:
        _check_same_classes(spec, train, validation)
    return TrainingData(train, validation)


def match_data(data: TrainingData, head: Head) -> TrainingData:
    """The same images, with targets that are indices into a model's head.

    Where the head's classes have no names, those of the training split are theirs. Where there is
    no head, or there are no labels, nothing is matched.

    Raises:
        UserError: the classes are not the head's; names the odd one.
    """
    if head.size == 0:  # labels mean nothing to it
        return TrainingData(replace(data.train, classes=()), replace(data.validation, classes=()))
    train = data.train if data.train.unlabelled else match_classes(data.train, head)
    if not head.names and len(train.classes) == head.size and train.indices is not None:
        names = dict(zip(train.indices, train.classes, strict=True))
        head = replace(head, names=tuple(names[i] for i in sorted(names)))
    validation = data.validation
    if not validation.unlabelled:
        validation = match_classes(validation, head)
    return TrainingData(train, validation)


def label_names(train: ImageData, head: Head) -> tuple[str, ...]:
    """What a trained model's classes are called: as its data are, else as before."""
    indices = train.indices or ()
    if sorted(indices) == list(range(head.size)):
        names = dict(zip(indices, train.classes, strict=True))
        return tuple(names[i] for i in range(head.size))
    return head.names


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
            f"`aa` {recipe.aa!r} is not known to timm ({error or 'unknown form'}); "
            "use a form like rand-m9-mstd0.5-mmax9-inc1, or none."
        ) from error


def check_data(data: TrainingData, recipe: Recipe, processes: int) -> None:
    """Raise unless the data can be cut into this recipe's batches over so many processes."""
    train, count = data.train, data.train.count
    if len(train.classes) == 1:
        raise UserError(
            f"{train.spec} has one class only ({train.classes[0]}); training needs 2 or more."
        )
    if not count:
        raise UserError(
            f"{train.spec} does not say how many images it has; training needs to know."
        )
    if recipe.batch_size > count:
        raise UserError(
            f"`batch_size={recipe.batch_size}` is larger than the training data of {train.spec}, "
            f"{count} images; use at most {count}."
        )
    shards = processes * recipe.grad_accumulation
    part = 2 if recipe.mixes or shards > 1 else 1
    if recipe.batch_size % (shards * part):
        raise UserError(
            f"`batch_size={recipe.batch_size}` can't be cut into {shards} equal parts of an even "
            "number of images (processes x `grad_accumulation`); "
            f"use a multiple of {part * shards}."
        )


def _check_same_classes(spec: str, train: ImageData, validation: ImageData) -> None:
    """Raise where a class folder is in one split only; an empty one is there."""
    empty = {name.split("/")[-1] for part in (train, validation) for name in part.empty_folders}
    odd = sorted((set(train.classes) ^ set(validation.classes)) - empty)
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
    images = open_named(spec, split, data_dir, download, is_training=True, seed=seed)
    images.transform = Prepared(mode_for(config["input_size"][0]), transform)
    return ImageData(spec, split, images, (), list(getattr(images, "classes", ())), config, None)
