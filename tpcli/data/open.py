"""Open a DATA spec: the demo, a folder, a .tar or a data set of timm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from timm.data import create_transform
from torch.utils.data import IterableDataset, Subset

from tpcli.config.specs import DEMO, check_data, is_named, main_name
from tpcli.demo import Digits
from tpcli.errors import UserError

from .classes import (
    Head,
    NoClasses,
    Unmatched,
    by_class_files,
    by_folder,
    by_map,
    match,
    no_head,
    without_classes,
)
from .images import (
    UNREADABLE,
    FileImages,
    ImageData,
    Prepared,
    Relabelled,
    RelabelledStream,
    mode_for,
)
from .listing import NO_FILE, in_folder, in_tar
from .named import NamedStream, named
from .pixels import Opener, found_scale
from .splits import find_split, keep_split


def create(
    spec: str,
    config: dict[str, Any],
    *,
    split: str = "validation",
    data_dir: str | None = None,
    download: bool = False,
    limit: int | None = None,
    transform: Any = None,
    class_map: Mapping[str, int] | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
    pixel_max: float | None = None,
) -> ImageData:
    """Open a data set, for evaluation unless it is given another transform.

    Args:
        spec: `demo`, a folder, a .tar file, or a timm data set name such as `torch/cifar10`.
        config: the model's data config (`tpcli.load(...).data_config`).
        limit: at most so many images, spread evenly over the data.
        transform: from a PIL image to what the data yields, in place of evaluation's own.
        class_map: class folders and their indices in the head, as `read_class_map` reads them; the
            other folders are left out. Without it targets are positions, until `match_classes`.
        input_key: the column that holds the images, where a data set has columns.
        target_key: the column that holds the labels.
        pixel_max: what is white in pictures of more than 8 bits; found from the data where None.

    Raises:
        UserError: there is nothing there, or nothing that can be read; says what is missing.
    """
    keys = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
    known = {key: config[key] for key in keys if key in config}
    transform = transform or create_transform(**known, is_training=False, use_prefetcher=True)
    prepared = Prepared(mode_for(config["input_size"][0]), transform)
    columns = {"input_key": input_key, "target_key": target_key}
    if spec == DEMO:
        split = main_name(split)
        classes = [str(digit) for digit in range(10)]
        data = ImageData(DEMO, split, Digits(split, prepared), (), classes, config)
    elif is_named(spec):
        data = named(
            spec,
            split,
            config,
            prepared,
            pixel_max,
            data_dir=data_dir,
            download=download,
            **columns,
        )
    else:
        for name, key in columns.items():
            if key is not None:
                raise UserError(
                    f"`{name}={key}` is for data sets of timm's with columns, such as hfds/ or "
                    f"wds/; leave it out for {spec}."
                )
        data = _local(spec, split, config, prepared, class_map, pixel_max)
    if class_map is not None and data.indices is None:
        raise UserError(f"{spec} has no class folders; leave the class map out.")
    if limit is not None:
        data = _limit(data, limit)
    _check_readable(data)
    return data


def match_classes(data: ImageData, head: Head) -> ImageData:
    """Map targets to indices into a model's head.

    Raises:
        Unmatched: there are no labels, no head, or no class is the head's.
        UserError: some classes are not the head's; names the odd one.
    """
    if data.unlabelled:
        raise Unmatched(
            f"{data.unlabelled.rstrip('.')}, or use `measure=agreement` or `measure=similarity`, "
            "which need no labels."
        )
    if head.size == 0:
        raise no_head(data.spec, head)
    if data.indices is not None:
        largest = max(data.indices)
        if largest >= head.size:
            raise UserError(
                f"the class map has index {largest}, the head of {head.model} has {head.size} "
                f"classes; indices go from 0 to {head.size - 1}."
            )
        return data
    is_stream = isinstance(data.images, IterableDataset)
    indices = tuple(range(head.size))
    if data.classes:
        folders = bool(data.names)
        indices = match(data.spec, data.classes, head, data.empty_folders, are_folders=folders)
        if folders and indices == tuple(range(len(indices))):
            return replace(data, indices=indices)
    elif is_stream and not isinstance(data.images, NamedStream):
        return data
    kind = RelabelledStream if is_stream else Relabelled
    images: Any = kind(data.images, indices, f"{head.model}, in {data.spec}")
    return replace(data, images=images, indices=indices)


def _local(
    spec: str,
    split: str,
    config: dict[str, Any],
    prepared: Prepared,
    class_map: Mapping[str, int] | None,
    pixel_max: float | None,
) -> ImageData:
    check_data(spec)
    path = Path(spec)
    root = find_split(path, split) if path.is_dir() else path
    if not root.is_dir() and not root.is_file():
        raise UserError(f"{root} is {NO_FILE} and no folder; give a folder or a .tar file.")
    files = in_folder(root) if root.is_dir() else in_tar(root)
    if root == path and path.is_file():
        keep_split(files, split)
    indices, unlabelled = None, ""
    try:
        found = by_folder(files)
    except NoClasses as error:
        if class_map is not None:
            raise
        found, unlabelled = without_classes(files), str(error)
        if files.classes:
            found, unlabelled = by_class_files(files)
    if class_map is not None:
        found, indices = by_map(spec, found, class_map)
    opens = [(member.name, partial(files.open, member)) for member in found.members]
    everything = partial(_openers, path) if path.is_dir() and path != root else None
    prepared = replace(prepared, scale=found_scale(spec, opens, pixel_max, everything))
    config = prepared.scale.within(config)
    images = FileImages(files, found.members, found.labels, prepared, config["input_size"])
    names = [member.name for member in found.members]
    left_out = (*files.left_out, *found.left_out)
    files.members, files.left_out, files.classes = [], [], []  # not to be copied into every process
    return ImageData(
        spec, split, images, names, found.names, config, root, indices, left_out, unlabelled
    )


def _openers(root: Path) -> list[Opener]:
    """All images under a folder, of whatever split."""
    files = in_folder(root)
    return [(member.name, partial(files.open, member)) for member in files.members]


def _limit(data: ImageData, limit: int) -> ImageData:
    if limit < 1:
        raise UserError(f"`limit={limit}` is below 1; use 1 or more images.")
    count = count_of(data, f"`limit={limit}`")
    if limit >= count:
        return data
    return subset(data, [i * count // limit for i in range(limit)])


def count_of(data: ImageData, who: str) -> int:
    """The number of images, where they can be read in any order.

    who: what needs that, for the error.

    Raises:
        UserError: they come as a stream.
    """
    if isinstance(data.images, IterableDataset) or data.count is None:
        raise UserError(
            f"{who} needs images in any order, and {data.spec} is read as a stream; "
            "leave it out, or use a folder or a .tar file."
        )
    return data.count


def subset(data: ImageData, indices: Sequence[int]) -> ImageData:
    """A subset of the images, in the order of `indices`."""
    names = [data.names[i] for i in indices] if data.names else ()
    return replace(data, images=Subset(data.images, indices), names=names)


def _check_readable(data: ImageData) -> None:
    """Raise UserError if no image can be read."""
    if isinstance(data.images, IterableDataset):
        return
    count = data.count or 0
    if not any(data.images[i][1] != UNREADABLE for i in range(count)):
        why = f" ({data.why_unreadable(0)})" if count else ""
        raise UserError(f"none of the {count} images in {data.spec} can be read{why}.")
