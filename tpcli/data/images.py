"""Images, labelled or not, with the preprocessing of one model."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from tpcli.errors import UserError

from .classes import EMPTY
from .listing import Files, LeftOut, Member, formats

MODES = {1: "L", 3: "RGB"}
LONGEST = 1000
"""Sides of one to more than this are no picture, and would be resized to gigabytes."""


def mode_for(channels: int) -> str:
    """Pillow's mode of pictures with so many channels.

    Raises:
        UserError: there is none.
    """
    if channels not in MODES:
        raise UserError(
            f"the model takes {channels} channels, and images have 3 (RGB) or 1 (grey); "
            "use a model with in_chans=3 or in_chans=1."
        )
    return MODES[channels]


@dataclass(frozen=True)
class Prepared:
    """A transform behind the conversion to a mode."""

    mode: str
    transform: Callable[[Image.Image], Any]

    def __call__(self, image: Image.Image) -> Any:
        return self.transform(in_mode(image, self.mode))


def decode(file: BinaryIO, mode: str) -> Image.Image:
    """The first picture in a file, in `mode`. EXIF's rotation is not applied, as in timm.

    Raises:
        Exception: it can't be read; of whatever kind Pillow's many decoders raise.
    """
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large images that are read all the same
        with Image.open(file, formats=formats()) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(f"{image.size} is no size of a picture")
            return in_mode(image, mode)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode; more than 8 bits are scaled to 8, where Pillow would clip."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, of 32 that hold 8 or 16, or of floats in [0, 1], [0, 255] or [0, 65535]."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    is_sixteen = image.mode == "I" and image.format in ("PNG", "PPM")
    if is_sixteen or image.mode.startswith("I;16"):
        scale = 1 / 257
    elif image.mode == "F" and high <= 1:
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 257
    if not (low >= 0 and high * scale <= 255):  # also of NaN
        raise ValueError(f"values from {low} to {high} are no picture")
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))


UNREADABLE = -100
"""Target of an image that could not be read (cross_entropy's own `ignore_index`)."""


@dataclass(frozen=True)
class ImageData:
    """Images with the preprocessing of one model.

    spec: what the user typed. split: its name. images: yields (uint8 image (C, H, W), target).
    names: file names in order, empty where the data set has none. classes: class names, empty where
    unknown, or where images have no labels. mean, std: per channel, in [0, 1]. config: the model's
    data config.
    """

    spec: str
    split: str
    images: Dataset[Any]
    names: Sequence[str]
    classes: Sequence[str]
    config: dict[str, Any]
    root: Path | None = None
    """The folder or .tar that holds them."""
    indices: tuple[int, ...] | None = None
    """For each class its index in the head, where targets are such; else they are positions."""
    left_out: tuple[LeftOut, ...] = ()
    """What lies under the root and does not count, and why."""
    unlabelled: str = ""
    """Why the images have no labels, as a sentence; empty where they have."""

    @property
    def empty_folders(self) -> tuple[str, ...]:
        """Class folders without an image."""
        return tuple(entry.name for entry in self.left_out if entry.why == EMPTY)

    @property
    def count(self) -> int | None:
        """Number of images, None where a stream does not tell."""
        try:
            return len(self.images)  # type: ignore[arg-type]
        except TypeError:
            return None

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32, normalized, on the images' own device."""
        return normalize(images, self.config)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of which images these are: names, labels, sizes, times, split, preprocessing."""
        digest = hashlib.sha256()
        config = {key: self.config[key] for key in sorted(self.config)}
        place = self.root and self.root.resolve()
        what = (self.spec, place, self.split, self.count, config, list(self.classes), self.indices)
        digest.update(repr(what).encode())
        images: Any = self.images
        while isinstance(images, Subset | Relabelled):  # names don't say all where there are none
            chosen = images.indices if isinstance(images, Subset) else images.table
            digest.update(np.asarray(chosen, dtype=np.int64).tobytes())
            images = images.dataset if isinstance(images, Subset) else images.images
        digest.update(os.fsencode("\n".join(self.names)))
        if self.root is not None:
            files = [self.root] if self.root.is_file() else (self.root / n for n in self.names)
            for file in files:
                digest.update(_size_and_time(file).encode())
        return digest.hexdigest()


def normalize(images: Tensor, config: Mapping[str, Any]) -> Tensor:
    """uint8 (B, C, H, W) to float32, normalized by the `mean` and `std` of a data config."""
    mean = torch.tensor(config["mean"], device=images.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(config["std"], device=images.device).view(1, -1, 1, 1) * 255
    return (images.float() - mean) / std


class FileImages(Dataset[Any]):
    """Images of files. An unreadable one is blank, with target UNREADABLE.

    timm's own data set would silently take the next image in its place, and count that one twice.
    """

    def __init__(
        self,
        files: Files,
        members: Sequence[Member],
        labels: Sequence[int],
        prepared: Prepared,
        input_size: tuple[int, int, int],
    ) -> None:
        self.files = files
        self.members = members
        self.labels = labels
        self.prepared = prepared
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        member = self.members[index]
        try:
            image = decode(self.files.open(member), self.prepared.mode)
        except Exception:  # Pillow's decoders raise almost anything
            return np.zeros(self.input_size, dtype=np.uint8), UNREADABLE
        return self.prepared.transform(image), self.labels[index]


class NamedImages(Dataset[Any]):
    """The images of a data set of timm's; unreadable ones as in `FileImages`."""

    def __init__(self, images: Any, input_size: tuple[int, int, int]) -> None:
        self.images = images
        self.images._max_retries = 1
        self.images.input_img_mode = None  # converted behind, by `Prepared`
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError(index)  # which ends an iteration
        try:
            image, target = self.images[index]
        except Exception:
            return np.zeros(self.input_size, dtype=np.uint8), UNREADABLE
        return image, int(target)


class Relabelled(Dataset[Any]):
    """Images whose target is looked up in a table."""

    def __init__(self, images: Dataset[Any], table: Sequence[int]) -> None:
        self.images = images
        self.table = table

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.images[index]
        return image, target if target == UNREADABLE else self.table[target]


def _size_and_time(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:  # a link to nowhere
        return "nothing"
    return f"{stat.st_size} {stat.st_mtime_ns}"
