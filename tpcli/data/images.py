"""Images, labelled or not, with the preprocessing of one model."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from tpcli.errors import TpcliError, UserError, first_line

from .classes import EMPTY
from .listing import Files, LeftOut, Member
from .pixels import Scale, decode, in_mode

MODES = {1: "L", 3: "RGB"}


def mode_for(channels: int) -> str:
    """Pillow's mode for a number of channels.

    Raises:
        UserError: Pillow has no such mode.
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
    scale: Scale = field(default_factory=Scale)

    def __call__(self, image: Image.Image) -> Any:
        return self.transform(in_mode(image, self.mode, self.scale))


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
    """Files and folders that are ignored, with the reason."""
    unlabelled: str = ""
    """Why the images have no labels, as a sentence; empty where they have."""
    columns: tuple[str | None, ...] = ()
    """Of a data set that has columns, those of images and labels, where they were given."""
    origin: tuple[Any, ...] = ()
    """What tells a data set without file names apart from what lay in its place before."""

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

    def why_unreadable(self, position: int) -> str:
        """Why an image that could not be read is left out."""
        images: Any = self.images
        while isinstance(images, Subset | Relabelled):
            position = images.indices[position] if isinstance(images, Subset) else position
            images = images.dataset
        if isinstance(images, FileImages):
            why = images.decoded(position)
            return why if isinstance(why, str) else "it changed meanwhile"
        reasons: dict[int, str] = getattr(images, "reasons", {})
        if position not in reasons and not isinstance(images, IterableDataset):
            images[position]  # which a worker process read before
        return reasons.get(position, "it is damaged")

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32, normalized, on the images' own device."""
        return normalize(images, self.config)

    @cached_property
    def content(self) -> str:
        """Hash of names, labels, split and preprocessing, wherever the images lie."""
        config = {key: self.config[key] for key in sorted(self.config)}
        what = (self.split, self.count, config, list(self.classes), self.indices, self.columns)
        digest = hashlib.sha256(repr(what).encode())
        images: Any = self.images
        while isinstance(images, Subset | Relabelled):
            digest.update(_bytes(images.indices if isinstance(images, Subset) else images.table))
            images = images.dataset
        if isinstance(images, FileImages):
            digest.update(_bytes(images.labels))
        digest.update(os.fsencode("\n".join(self.names)))
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, its place, and sizes and modification times of the files."""
        what = (self.content, self.spec, self.root and self.root.resolve(), self.origin)
        digest = hashlib.sha256(repr(what).encode())
        if self.root is not None:
            files = [self.root] if self.root.is_file() else (self.root / n for n in self.names)
            for file in files:
                digest.update(size_and_time(file).encode())
        return digest.hexdigest()


def _bytes(numbers: Sequence[int]) -> bytes:
    return np.asarray(list(numbers), dtype=np.int64).tobytes()


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
        image = self.decoded(index)
        if isinstance(image, str):
            return blank(self.input_size)
        return self.prepared.transform(image), self.labels[index]

    def decoded(self, index: int) -> Image.Image | str:
        """An image, or why it can't be read.

        Raises:
            TpcliError: the system does not let this process read, which is not the image's fault.
        """
        member = self.members[index]
        try:
            file = self.files.open(member)
            return decode(file, self.prepared.mode, self.prepared.scale)
        except Exception as error:  # Pillow's decoders raise almost anything
            return why_unreadable(error, f"{member.name} in {self.files.root}")


def blank(input_size: tuple[int, int, int]) -> tuple[Any, int]:
    """What stands for an image that can't be read."""
    return np.zeros(input_size, dtype=np.uint8), UNREADABLE


MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EINVAL)
"""What the system says of a file that is not there, or not for this user."""


def why_unreadable(error: Exception, what: str) -> str:
    """Why an image is left out.

    Raises:
        TpcliError: it is not the image's fault but that of memory, network, disk or the like, which
            would silently measure fewer images.
    """
    is_systems = isinstance(error, OSError) and error.errno not in (None, *MISSING)
    if is_systems or isinstance(error, MemoryError | ConnectionError | TimeoutError):
        raise TpcliError(f"{what} could not be read: {first_line(error)}.") from error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


class Relabelled(Dataset[Any]):
    """Images whose target is looked up in a table.

    what: whose classes the table has, for the error.
    """

    def __init__(self, images: Dataset[Any], table: Sequence[int], what: str = "the data") -> None:
        self.dataset = images
        self.table = table
        self.what = what

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.dataset[index]
        return image, self.looked_up(target)

    def looked_up(self, target: int) -> int:
        """The table's value.

        Raises:
            UserError: the label is hidden, or none of the table's.
        """
        if target == UNREADABLE:
            return target
        if not 0 <= target < len(self.table):
            is_hidden = "it hides the image's class; " if target < 0 else ""
            raise UserError(
                f"label {target} is none of the {len(self.table)} classes of {self.what}: "
                f"{is_hidden}use another split, another `target_key`, a model with these classes, "
                "or `measure=agreement` or `measure=similarity`, which need no labels."
            )
        return self.table[target]


class RelabelledStream(Relabelled, IterableDataset[Any]):
    """The same of a stream."""

    def __iter__(self) -> Iterator[Any]:
        for image, target in iter(self.dataset):
            yield image, self.looked_up(target)


def size_and_time(file: Path) -> str:
    """Of a file, in a word; of one that is not there, too."""
    try:
        stat = file.stat()
    except OSError:  # a link to nowhere
        return "nothing"
    return f"{stat.st_size} {stat.st_mtime_ns}"
