"""Where a split lies in a folder, so that no two splits are ever mixed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tpcli.config.specs import SPLITS, main_name, splits_among
from tpcli.errors import UserError

from .listing import Files, entries, is_folder, is_hidden, is_image

DEEPEST = 4
"""Levels of folders that splits are looked for in, as in ILSVRC/Data/CLS-LOC/train."""

GLANCE = 1000
"""Files that are looked at to tell whether a folder holds images."""


def find_split(folder: Path, split: str) -> Path:
    """The folder or .tar of `split` in `folder` or below; the folder itself where it has no splits.

    Raises:
        UserError: there are splits, but not this one, or several that it may be.
    """
    place = _place_of_splits(folder)
    named = _splits_in(place)
    exact = [entry for entry in _entries(place) if _stem(entry) == split]
    if exact and (named or main_name(split) not in SPLITS):
        return exact[0]
    if not named:
        if main_name(split) not in SPLITS:
            raise UserError(f"{folder} has no {split!r} split; name one that is there.")
        return place
    wanted = [entry for entry, main in named.items() if main == main_name(split)]
    if len({_stem(entry) for entry in wanted}) > 1:
        raise UserError(
            f"{place} has several {split!r} splits, {', '.join(e.name for e in wanted)}; "
            "ask for one by its own name."
        )
    if not wanted:
        order = list(SPLITS)
        there = sorted(named, key=lambda entry: (order.index(named[entry]), entry.name))
        raise UserError(
            f"{place} has no {split!r} split; it has {', '.join(e.name for e in there)}."
        )
    return wanted[0]


def keep_split(archive: Files, split: str) -> None:
    """Drop what is outside of `split`, where the folders of an archive are splits.

    Raises:
        UserError: they are, but not this one.
    """
    front = ""
    for _ in range(DEEPEST):
        inner = {f[len(front) :] for f in archive.folders if f.startswith(front)}
        tops = {name.split("/")[0] for name in inner}
        named = splits_among(tops)
        is_deep = any("/" in name and name.split("/")[0] in named for name in inner)
        if named and (is_deep or len(set(named.values())) > 1 or len(named) == len(tops)):
            break
        if len(tops) != 1:
            return
        front = f"{front}{tops.pop()}/"
    else:
        return
    wanted = [name for name, main in named.items() if main_name(split) == main or name == split]
    if len(wanted) != 1:
        raise UserError(
            f"{archive.root} has {'several' if wanted else 'no'} {split!r} splits; it has "
            f"{', '.join(sorted(named))}."
        )
    inside = f"{front}{wanted[0]}/"
    archive.members = [m for m in archive.members if m.name.startswith(inside)]
    archive.folders = [f for f in archive.folders if f.startswith(inside)]
    archive.left_out = [e for e in archive.left_out if e.name.startswith(inside)]


def _place_of_splits(folder: Path) -> Path:
    """The folder at or below `folder` that holds splits; `folder` itself where none does."""
    places = list(_places(folder, DEEPEST))
    if not places:
        return folder
    if len(places) > 1:
        raise UserError(
            f"{folder} holds splits in several places, {_under(places[0], folder)}/ and "
            f"{_under(places[1], folder)}/; give the one that is meant."
        )
    branch = places[0]
    while branch != folder:
        for other in _folders(branch.parent):
            if other != branch and _holds_images(other):
                raise UserError(
                    f"{folder} holds splits in {_under(places[0], folder)}/ and other images in "
                    f"{_under(other, folder)}/; give the one that is meant."
                )
        branch = branch.parent
    return places[0]


def _places(folder: Path, deepest: int) -> Iterator[Path]:
    """Folders with splits that hold images, none of them inside another."""
    splits = _splits_in(folder)
    if splits:
        if any(_holds_images(entry) for entry in splits):
            yield folder
    elif deepest:
        for inner in _folders(folder):
            first = next(entries(inner), None)
            if not (first and is_image(first.name)):  # a class folder would be long to list
                yield from _places(inner, deepest - 1)


def _splits_in(folder: Path) -> dict[Path, str]:
    """The splits in a folder, and the main name of each."""
    entries = _entries(folder)
    mains = splits_among(map(_stem, entries))
    named = {entry: mains[_stem(entry)] for entry in entries if _stem(entry) in mains}
    others = any(entry.is_dir() for entry in entries if entry not in named)
    is_flat = all(entry.is_dir() and not _folders(entry) for entry in named)
    if others and is_flat and len(set(named.values())) == 1:
        return {}  # a class, such as trains, among others
    return named


def _holds_images(entry: Path) -> bool:
    """Whether a folder holds images, by a glance; an archive does."""
    if not entry.is_dir():
        return True
    files = (name for _, _, names in os.walk(entry) for name in names if not is_hidden(name))
    return any(is_image(name) or name.endswith(".tar") for name in islice(files, GLANCE))


def _entries(folder: Path) -> list[Path]:
    """Folders and archives, folders first."""
    found = [
        Path(entry.path)
        for entry in entries(folder)
        if not is_hidden(entry.name) and (is_folder(entry) or entry.name.lower().endswith(".tar"))
    ]
    return sorted(found, key=lambda path: (not path.is_dir(), path.name))


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def _stem(entry: Path) -> str:
    return entry.name[: -len(".tar")] if entry.name.lower().endswith(".tar") else entry.name


def _under(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
