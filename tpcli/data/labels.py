"""Which class of a model's head each class folder is: by name where names are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from tpcli.errors import UserError, did_you_mean

WORDNET = re.compile(r"n\d{8}")
PLACEHOLDER = re.compile(r"(LABEL_)?\d+")
"""Label names that say nothing."""


class Unmatched(UserError):
    """The labels of the data say nothing about the model: there are none, or it has no such
    classes."""


@dataclass(frozen=True)
class Head:
    """The classes that a model tells apart.

    model: what it is called. size: number of classes. names: of each, empty where unknown.
    """

    model: str
    size: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, name: str = "the model") -> Head:
        """The head of a timm model, with the `label_names` of its config where they fit.

        Raises:
            UserError: it answers for each token, not for the image.
        """
        size = int(model.num_classes)
        if size and getattr(model, "global_pool", None) == "":
            raise UserError(
                f"{name} has global_pool '', so it answers for each token and not for the image; "
                "use token, avg or another that its architecture takes."
            )
        names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
        if isinstance(names, Mapping):  # by their indices
            names = list(names.values())
        fit = len(names) == size and not isinstance(names, str)
        return cls(name, size, tuple(map(str, names)) if fit else ())


def match(
    spec: str,
    classes: Sequence[str],
    head: Head,
    odd: Sequence[str] = (),
    *,
    are_folders: bool = True,
) -> tuple[int, ...]:
    """The index in the head of each class.

    By name where the head's names are known, or where both are ImageNet's (WordNet ids); fewer
    classes than the head has are fine then. Numbered classes, and those of a head without names,
    go by position.

    Args:
        odd: folders without images, for the error.
        are_folders: whether people named them. A data set of timm's has names and an order of its
            own, which stands where its names are not all the head's.

    Raises:
        Unmatched: no class is the head's, or numbers of classes differ.
        UserError: some classes are the head's and others are not.
    """
    if head.size == 0:
        raise no_head(spec, head)
    for names in _names(classes, head):
        found = _look_up(classes, names)
        known = [i for i in found if i is not None]
        if len(known) == len(found):
            _check_distinct(spec, classes, known, head)
            return tuple(known)
        if known and are_folders:
            unknown = [c for c, i in zip(classes, found, strict=True) if i is None]
            raise UserError(_unknown(spec, unknown, names, head))
    says_something = any(not PLACEHOLDER.fullmatch(name) for name in head.names)
    if are_folders and says_something and not _are_numbered(classes):
        raise Unmatched(_unknown(spec, classes, head.names, head))
    if len(classes) != head.size:
        kind = UserError if odd else Unmatched
        raise kind(_wrong_count(spec, classes, head, odd))
    return tuple(range(head.size))


def no_head(spec: str, head: Head) -> Unmatched:
    """What is wrong where labels are held against a model that has no classes."""
    return Unmatched(
        f"{head.model} has no head, so the labels of {spec} say nothing about it; use a model "
        "with classes, or `measure=knn` or `measure=similarity`, which need no head."
    )


def check_indices(indices: Iterable[int], head: Head) -> None:
    """Raise where a class map goes beyond a head.

    Raises:
        UserError: names the index.
    """
    largest = max(indices)
    if largest >= head.size:
        raise UserError(
            f"the class map has index {largest}, the head of {head.model} has {head.size} classes; "
            f"indices go from 0 to {head.size - 1}."
        )


def _names(classes: Sequence[str], head: Head) -> list[Sequence[str]]:
    """Lists of names that the head's classes may go by, the likeliest first."""
    lists: list[Sequence[str]] = [head.names] if head.names else []
    subset = infer_imagenet_subset({"num_classes": head.size})
    if subset and any(map(WORDNET.fullmatch, classes)):
        lists.append(ImageNetInfo(subset).label_names())
    return lists


def _look_up(classes: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """The position of each class in `names`: as it is written, else in any capitals."""
    exact = {name: i for i, name in enumerate(names)}
    times = Counter(map(_folded, names))
    folded = {_folded(name): i for i, name in enumerate(names) if times[_folded(name)] == 1}
    return [exact.get(name, folded.get(_folded(name))) for name in classes]


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).casefold()


def _are_numbered(classes: Sequence[str]) -> bool:
    """Whether they are 0, 1, 2, ... or 1, 2, 3, ... in that order."""
    if not all(name.isascii() and name.isdecimal() for name in classes):
        return False
    numbers = [int(name) for name in classes]
    return numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _check_distinct(spec: str, classes: Sequence[str], indices: Sequence[int], head: Head) -> None:
    seen: dict[int, str] = {}
    for name, index in zip(classes, indices, strict=True):
        if index in seen:
            raise UserError(
                f"{spec} has two folders, {seen[index]}/ and {name}/, for one class of "
                f"{head.model}; make them one."
            )
        seen[index] = name


def _unknown(spec: str, unknown: Sequence[str], names: Sequence[str], head: Head) -> str:
    folders = ", ".join(f"{name}/" for name in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    verb = "is no class" if len(unknown) == 1 else "are no classes"
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"{folders} in {spec} {verb} of {head.model}, whose classes are {some}; rename or remove "
        "what is odd, or say which folder is which class by a `class_map`."
        f"{did_you_mean(unknown[0], names)}"
    )


def _wrong_count(spec: str, classes: Sequence[str], head: Head, odd: Sequence[str]) -> str:
    counts = f"{spec} has {len(classes)} classes, the head of {head.model} has {head.size}"
    if odd:
        folders = ", ".join(f"{name}/" for name in odd[:3]) + (", ..." if len(odd) > 3 else "")
        verb = "holds" if len(odd) == 1 else "hold"
        return (
            f"{counts}: {folders} {verb} no images; fill or remove what is odd, or say which "
            "folder is which class by a `class_map`."
        )
    if len(classes) == 1:
        return (
            f"{counts}: all images lie in {classes[0]}/; put the images of each class in a folder "
            "of its own."
        )
    return (
        f"{counts}; use data of {head.size} classes, say which folder is which class by a "
        f"`class_map`, or use a model with `num_classes={len(classes)}`."
    )
