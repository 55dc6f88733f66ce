"""Whether data hold the same images, whatever their folders, links and archives are called."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, Subset

from tpcli.config.specs import main_name

from .images import FileImages, ImageData, Relabelled

SAMPLED = 64
"""Images that are looked for in other data."""

LEAST_SHARE = 0.05
"""Of the sampled images, the share that must be found: data sets have a few duplicates."""

MOST_READ = 200
"""Files of one size that are read for one sampled image."""

LEAST_WARNED = 0.01
"""The share of measured images from which on `warnings` says something."""


def overlap(one: ImageData, other: ImageData) -> bool:
    """Whether two data share images: the smaller is sampled, and found in the larger by content.

    Data sets of timm's are told apart by name, split and position.
    """
    few, many = sorted((one, other), key=lambda data: data.count or np.inf)
    if isinstance(_unwrapped(few)[0], FileImages):
        return seen(sample(few), many) >= LEAST_SHARE
    if not _are_one_split(few, many):
        return False
    if few.count is None or many.count is None:
        return True
    return bool(np.intersect1d(_unwrapped(few)[1], _unwrapped(many)[1]).size)


def sample(data: ImageData, most: int = SAMPLED) -> list[str]:
    """Digests of some images, spread evenly, by which `seen` finds them in other data."""
    images, positions = _unwrapped(data)
    chosen = positions[np.linspace(0, len(positions) - 1, min(most, len(positions))).astype(int)]
    if not isinstance(images, FileImages):
        return [f"{_name(data)} {i}" for i in chosen] or [_name(data)]
    return [digest for i in chosen if (digest := _digest(images, int(i)))]


def seen(digests: Sequence[str], data: ImageData) -> float:
    """The share of sampled images that `data` hold."""
    images, positions = _unwrapped(data)
    if not isinstance(images, FileImages):
        names = {_name(data), *(f"{_name(data)} {i}" for i in positions)}
        return sum(digest in names for digest in digests) / max(len(digests), 1)
    of_size: dict[str, list[int]] = defaultdict(list)
    for i in positions:
        of_size[str(_size(images, int(i)))].append(int(i))
    known: dict[int, str] = {}

    def is_here(digest: str) -> bool:
        for i in of_size.get(digest.partition(":")[0], ())[:MOST_READ]:
            if i not in known:
                known[i] = _digest(images, i)
            if known[i] == digest:
                return True
        return False

    return sum(map(is_here, digests)) / max(len(digests), 1)


def chosen_on(data: ImageData, count: int | None = None) -> dict[str, Any]:
    """What files remember of the images that a schedule, or a model, was made with."""
    count = data.count if count is None else count
    return {"data": data.spec, "split": data.split, "count": count, "sample": sample(data)}


TRAINED, SELECTED = "trained", "selected"
WHAT = {TRAINED: "the model was trained", SELECTED: "the model's weights were chosen"}
"""What a model was made with its images for."""


def warnings(made_on: Iterable[Any], data: ImageData) -> list[str]:
    """What must stand beside a score on `data` of what was chosen, or trained, on some of them.

    made_on: what `chosen_on` gave, of a model with one of `WHAT` as its `how`; anything else says
    nothing.
    """
    return list(dict.fromkeys(filter(None, (_warning(each, data) for each in made_on))))


def _warning(chosen: Any, data: ImageData) -> str:
    if not isinstance(chosen, Mapping) or not isinstance(chosen.get("sample"), list):
        return ""
    share = seen([str(digest) for digest in chosen["sample"]], data)
    count = chosen.get("count")
    if not share or not data.count or not isinstance(count, int):
        return ""
    of_these = min(1.0, share * count / data.count)
    if of_these < LEAST_WARNED:
        return ""
    what = WHAT.get(str(chosen.get("how")), "the schedule was chosen")
    return f"{what} on about {100 * of_these:.0f}% of these images"


def _unwrapped(data: ImageData) -> tuple[Any, Any]:
    """The data set under all subsets, and the positions in it: (N,)."""
    images, positions = data.images, np.arange(data.count or 0)
    while isinstance(images, Subset | Relabelled):
        if isinstance(images, Subset):
            positions = np.asarray(images.indices, dtype=np.int64)[positions]
        images = images.dataset
    return images, positions


def _name(data: ImageData) -> str:
    place = "" if data.root is None else f" {data.root.resolve()}"
    return f"{data.spec}{place} {main_name(data.split)}"


def _are_one_split(one: ImageData, other: ImageData) -> bool:
    """Whether two data sets of timm's are one, also under two names of a split."""
    if _name(one) == _name(other):
        return True
    first, second = _unwrapped(one)[0], _unwrapped(other)[0]
    if one.spec != other.spec or one.count is None or other.count is None:
        return False
    if isinstance(first, IterableDataset) or len(first) != len(second):
        return False
    places = {0, len(first) // 2, len(first) - 1}
    return all(np.array_equal(first[i][0], second[i][0]) for i in places)


def _size(images: FileImages, index: int) -> int:
    member = images.members[index]
    if member.size:
        return member.size
    with suppress(OSError):
        return os.stat(images.files.root / member.name).st_size
    return -1


def _digest(images: FileImages, index: int) -> str:
    """Size and hash of a file; empty where it can't be read."""
    with suppress(OSError), images.files.open(images.members[index]) as file:
        content = file.read()
        return f"{len(content)}:{hashlib.blake2b(content, digest_size=12).hexdigest()}"
    return ""
