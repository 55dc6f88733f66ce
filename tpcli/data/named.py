"""Data sets that timm opens by name: torch/, hfds/, hfids/, wds/ and tfds/."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch.utils.data import Dataset, IterableDataset

from tpcli.errors import TpcliError, UserError, first_line

from .classes import NO_LABEL
from .images import ImageData, Prepared, blank, size_and_time, why_unreadable
from .listing import is_image
from .pixels import LOOKED_AT, Opener, decode, found_scale

KEYED = ("hfds", "hfids", "wds", "tfds")
"""Beginnings of names of data sets whose columns have names."""


def open_named(
    spec: str,
    split: str,
    data_dir: str | None,
    download: bool,
    *,
    input_key: str | None = None,
    target_key: str | None = None,
    **more: Any,
) -> Any:
    """A data set of timm's.

    Raises:
        UserError: it can't be opened; says why.
    """
    both = {"input_key": input_key, "target_key": target_key}
    keys: dict[str, Any] = {name: key for name, key in both.items() if key is not None}
    for name, key in keys.items():
        if spec_kind(spec) not in KEYED:
            raise UserError(
                f"`{name}={key}` has no effect on {spec}, which has no columns; leave it out."
            )
    try:
        return create_dataset(spec, data_dir, split, download=download, **keys, **more)
    except (AssertionError, ImportError, RuntimeError, ValueError, OSError, TypeError) as error:
        raise UserError(
            f"data set {spec!r}, split {split!r}, could not be opened: {first_line(error)}; "
            "check the name, the split, `data_dir` and `input_key`, or add `download`."
        ) from error


def named(
    spec: str,
    split: str,
    config: dict[str, Any],
    prepared: Prepared,
    pixel_max: float | None,
    *,
    data_dir: str | None,
    download: bool,
    **keys: str | None,
) -> ImageData:
    """A data set of timm's for evaluation.

    pixel_max: what is white in pictures of more than 8 bits; found from some of them where None.
    Where the first label is no class, `unlabelled` says why.

    Raises:
        UserError: it can't be opened, or has no such columns.
    """
    found = open_named(spec, split, data_dir, download, **keys)
    kind = NamedStream if isinstance(found, IterableDataset) else NamedImages
    images = kind(found, spec, prepared, config["input_size"])
    classes = [c if isinstance(c, str) else c[0] for c in getattr(found, "classes", ())]
    if not classes:
        classes = _ordered(getattr(getattr(found, "reader", None), "class_to_idx", {}))
    root = Path(data_dir) if data_dir else None
    unlabelled = images.why_unlabelled()
    if unlabelled:
        images.has_labels, classes = False, []
    scale = found_scale(spec, images.some(), pixel_max)
    images.prepared = replace(prepared, scale=scale)
    return ImageData(
        spec,
        split,
        images,
        (),
        classes,
        scale.within(config),
        root,
        unlabelled=unlabelled,
        columns=tuple(keys.values()),
        origin=_origin(found),
    )


def _origin(found: Any) -> tuple[Any, ...]:
    """Files, labels and version of a data set, as far as it tells them."""
    reader = getattr(found, "reader", None)
    table, builder = getattr(reader, "dataset", None), getattr(reader, "builder", None)
    shards = getattr(getattr(reader, "split_info", None), "filenames", ())
    files = [Path(getattr(reader, "root", None) or "") / name for name in shards]
    if _is_folder(found):
        files += [Path(file) for file, _ in found.samples]
    targets: Any = getattr(found, "targets", None)
    return (
        getattr(table, "_fingerprint", None),
        getattr(getattr(builder, "info", None), "full_name", None),
        targets.tolist() if hasattr(targets, "tolist") else targets,
        [f"{file} {size_and_time(file)}" for file in files],
    )


def _is_folder(found: Any) -> bool:
    """Whether it is torchvision's data set of class folders, or one that is made from it."""
    return hasattr(found, "loader") and hasattr(found, "samples")


def spec_kind(spec: str) -> str:
    """The prefix of a spec, such as wds."""
    return spec.partition("/")[0].lower()


def _ordered(indices: Mapping[str, int]) -> list[str]:
    """Names by their indices; none where those are not 0, 1, 2, ..."""
    names = sorted(indices, key=lambda name: indices[name])
    return names if [indices[name] for name in names] == list(range(len(names))) else []


def class_index(label: Any) -> int | None:
    """A label as the index of a class, NO_LABEL where it hides it, None if it is neither."""
    if label is None:
        return NO_LABEL
    if isinstance(label, bytes):
        label = label.decode("utf-8", "replace")
    if isinstance(label, str):
        text = label.strip()
        if not text.removeprefix("-").isdecimal():
            return None
        label = int(text)
    if hasattr(label, "item") and getattr(label, "size", 1) == 1:  # of NumPy or torch
        label = label.item()
    if not isinstance(label, int | float) or not float(label).is_integer():
        return None
    return max(int(label), NO_LABEL)


class _Labels(ABC):
    """Base of map-style and streamed data sets: decoding and labels."""

    def __init__(
        self, found: Any, spec: str, prepared: Prepared, input_size: tuple[int, int, int]
    ) -> None:
        found.transform = None
        found.input_img_mode = None  # converted by `prepared`
        if _is_folder(found):
            found.loader = partial(open, mode="rb")  # torchvision's own cuts 16 bits off
        self.found = found
        self.reader: Any = getattr(found, "reader", None)
        self.spec = spec
        self.prepared = prepared
        self.input_size = input_size
        self.has_labels = True
        self.reasons: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.found)

    def why_unlabelled(self) -> str:
        """Why the label of the first image is no class, as a sentence; empty where it is one."""
        try:
            label = self.first_label()
            if isinstance(label, _NoColumn):
                raise label
        except _NoColumn as error:
            return str(error)
        index = class_index(label)
        if index is None:
            return self._odd(label, 0)
        if index == NO_LABEL:
            return (
                f"the first image of {self.spec} has the label {label}, which hides its class; use "
                "another split, or another `target_key`."
            )
        return ""

    @abstractmethod
    def first_label(self) -> Any:
        """The label of the first image, as it is in the data set."""

    @abstractmethod
    def some(self) -> list[Opener]:
        """Some images, to find their scale."""

    def _odd(self, label: Any, position: int) -> str:
        return (
            f"image {position} of {self.spec} has the label {str(label)[:60]!r}, which is no index "
            "of a class; name the column of such labels by `target_key`."
        )

    def _pair(self, position: int, image: Any, label: Any) -> tuple[Any, int]:
        """What a data set yields: the image as the model takes it, and its class.

        image: opened by Pillow, bytes, or a file.
        """
        if self.has_labels and isinstance(label, Exception):
            raise label
        target = class_index(label) if self.has_labels else NO_LABEL
        if target is None:
            raise UserError(self._odd(label, position))
        try:
            image = _file(image)
            if hasattr(image, "read"):
                image = decode(image, self.prepared.mode, self.prepared.scale)
        except Exception as error:  # Pillow's decoders raise almost anything
            self.reasons[position] = why_unreadable(error, f"image {position} of {self.spec}")
            return blank(self.input_size)
        return self.prepared(image), target

    def _failed(self, position: int, error: Exception) -> TpcliError:
        """The error for an image that could not be fetched."""
        if isinstance(error, TpcliError):
            return error
        if isinstance(error, KeyError):
            source = getattr(self.reader, "dataset", None) or getattr(self.reader, "builder", None)
            there = getattr(getattr(source, "info", None), "features", None)
            only = f", only {', '.join(map(str, there))}" if there else ""
            return _NoColumn(
                f"{self.spec} has no column {error.args[0]!r}{only}; name that of images by "
                "`input_key`, that of labels by `target_key`."
            )
        return TpcliError(
            f"image {position} of {self.spec} could not be read: {first_line(error)}; try again."
        )


def _file(image: Any) -> Any:
    """Bytes as a file; an image of another form as it is."""
    return io.BytesIO(image) if isinstance(image, bytes) else image


class _NoColumn(UserError):
    """A column of a data set is missing."""


class NamedImages(_Labels, Dataset[Any]):
    """The images of a data set of timm's; unreadable ones as in `FileImages`."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError(index)  # which ends an iteration
        try:
            image, label = self._got(index)
        except _Unreadable as error:
            self.reasons[index] = str(error)
            return blank(self.input_size)
        return self._pair(index, image, label)

    def first_label(self) -> Any:
        try:
            return self._got(0)[1] if len(self) else 0
        except _Unreadable:
            return 0

    def some(self) -> list[Opener]:
        spread = range(0, len(self), max(1, len(self) // LOOKED_AT))[:LOOKED_AT]
        return [("", partial(self._file, index)) for index in spread]

    def _file(self, index: int) -> Any:
        return _file(self._got(index)[0])

    def _got(self, index: int) -> tuple[Any, Any]:
        """An image and its label; not decoded yet, but for torchvision's data sets."""
        try:
            if self.reader is not None:
                return self._read(index)
            try:
                image, label, *_ = self.found[index]
            except (OSError, SyntaxError, ValueError) as error:
                raise _Unreadable(why_unreadable(error, f"image {index} of {self.spec}")) from error
            return image, label
        except _Unreadable:
            raise
        except Exception as error:
            raise self._failed(index, error) from error

    def _read(self, index: int) -> tuple[Any, Any]:
        dataset, key = getattr(self.reader, "dataset", None), getattr(self.reader, "image_key", "")
        try:
            image, label, *_ = self.reader[index]
        except KeyError:
            if self.has_labels or dataset is None:
                raise
            held = dataset[index][key]  # without its label
            image, label = held.get("bytes") or Path(held["path"]).read_bytes(), None
        except (TypeError, AssertionError) as error:  # a row without an image
            raise _Unreadable("there is no image") from error
        return image, label


class _Unreadable(Exception):
    """An image is damaged or missing."""


class NamedStream(_Labels, IterableDataset[Any]):
    """The images of a stream of timm's, in order; every process reads all of it."""

    def __init__(self, found: Any, *rest: Any) -> None:
        super().__init__(found, *rest)
        if spec_kind(self.spec) == "hfids":
            self.reader.input_img_mode = None
        self.reader.dist_rank, self.reader.dist_num_replicas = 0, 1  # sharding by rank pads
        if spec_kind(self.spec) == "wds":
            self.reader.ds = _webdataset(self.reader)

    def __iter__(self) -> Iterator[Any]:
        for position, (image, label) in enumerate(self._got()):
            yield self._pair(position, image, label)

    def first_label(self) -> Any:
        return next(iter(self._got()), (None, 0))[1]

    def some(self) -> list[Opener]:
        return [("", partial(_file, image)) for image, _ in islice(self._got(), LOOKED_AT)]

    def _got(self) -> Iterator[tuple[Any, Any]]:
        position = 0
        try:
            for image, label in self.reader:
                yield image, label
                position += 1
        except Exception as error:
            raise self._failed(position, error) from error


def _webdataset(reader: Any) -> Any:
    """timm's pipeline without the handler that leaves out every sample with an error."""
    from timm.data.readers import reader_wds

    webdataset: Any = reader_wds.wds
    shards = [str(Path(reader.root or "") / name) for name in reader.split_info.filenames]
    key = reader.target_keys or reader.target_key or reader.split_info.alt_label
    return webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        webdataset.tarfile_to_samples(handler=webdataset.reraise_exception),
        webdataset.map(
            partial(_sample, input_key=reader.input_key, target_key=key),
            handler=webdataset.reraise_exception,
        ),
    )


def _sample(sample: dict[str, Any], input_key: str, target_key: Any) -> dict[str, Any]:
    """Image and label of a sample, not decoded.

    Raises:
        UserError: it has no such image or label.
    """
    name = sample["__key__"]
    there = [key for key in sample if not key.startswith("__")]
    images = [key for key in input_key.split(";") if key in sample]
    images = images or [key for key in there if is_image(f"x.{key.lower()}")]
    if not images:
        raise UserError(
            f"sample {name} has no {input_key}, only {', '.join(there)}; name the image by "
            "`input_key`."
        )
    return {"image": sample[images[0]], "target": _label(name, sample, target_key, there)}


def _label(name: str, sample: dict[str, Any], target_key: Any, there: list[str]) -> Any:
    """The label, or in words why there is none, raised where labels are needed."""
    if target_key in (None, "") and "cls" in sample:
        return sample["cls"]
    if isinstance(target_key, str) and target_key in sample:
        return sample[target_key]
    try:
        fields = json.loads(sample.get("json", b"{}"))
    except ValueError:
        fields = {}
    if isinstance(target_key, str) and isinstance(fields, dict) and target_key in fields:
        return fields[target_key]
    inside = f", and {', '.join(map(str, fields))} in its json" if fields else ""
    return _NoColumn(
        f"sample {name} has no {target_key or 'cls'}, only {', '.join(there)}{inside}; name what "
        "holds its label by `target_key`."
    )
