"""Which folder is the class of an image: all classes lie at one depth, or it is an error."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tpcli.errors import UserError

from .files import Files, LeftOut, Member, natural_key

BESIDE = "beside the class folders"
EMPTY = "a class folder without an image"
NO_LABEL = -1
"""Target of an image without a class."""
HOLDERS = ("images", "imgs", "image", "img")
"""Folders that are no class even where there is a single one."""


class NoClasses(UserError):
    """Images lie in no class folders, or in none that all of them agree on."""


@dataclass(frozen=True)
class Classes:
    """Images with the class folder of each.

    names: of the class folders that hold images, in natural order; empty where there are none.
    members, labels: the images, and for each the position of its class in `names`, or NO_LABEL.
    left_out: images without a class, empty folders.
    """

    names: tuple[str, ...]
    members: tuple[Member, ...]
    labels: tuple[int, ...]
    left_out: tuple[LeftOut, ...]

    def of(self, kept: Sequence[int], dropped: Sequence[LeftOut]) -> Classes:
        """Some of the classes alone."""
        position = {old: new for new, old in enumerate(kept)}
        pairs = zip(self.members, self.labels, strict=True)
        images = [(member, position[label]) for member, label in pairs if label in position]
        members, labels = zip(*images, strict=True)
        names = tuple(self.names[i] for i in kept)
        return Classes(names, members, labels, (*self.left_out, *dropped))


def by_folder(files: Files) -> Classes:
    """The class of an image is the name of its folder.

    Where every class folder holds one folder of the same name, as in Tiny ImageNet's
    `class/images/*.jpg`, it is the name above.

    Raises:
        NoClasses: images lie beside each other, or at different depths.
        UserError: there are no images, or folders that may be splits.
    """
    root = files.root
    if not files.members:
        raise UserError(
            f"{root} holds no images in class folders or beside each other{_archives(files)}."
        )
    members = [m for m in files.members if "/" in m.name]
    if not members:
        raise NoClasses(
            f"{root} holds images but no class folders; put the images of each class in a folder "
            "of its own."
        )
    folders = {posixpath.dirname(m.name) for m in members}
    _check_depths(files, folders)
    class_of = {folder: folder for folder in folders}
    while _holds_one_more(class_of.values()):
        class_of = {folder: posixpath.dirname(of) for folder, of in class_of.items()}
    paths = set(class_of.values())
    named = {posixpath.basename(path): path for path in sorted(paths)}
    if len(named) < len(paths):
        _refuse_twins(files, paths)
    names = sorted(named, key=natural_key)
    index = {named[name]: i for i, name in enumerate(names)}
    depth = next(iter(paths)).count("/")
    at_depth = {"/".join(f.split("/")[: depth + 1]) for f in files.folders if f.count("/") >= depth}
    return Classes(
        tuple(names),
        tuple(members),
        tuple(index[class_of[posixpath.dirname(m.name)]] for m in members),
        (
            *(LeftOut(m.name, BESIDE) for m in files.members if "/" not in m.name),
            *(LeftOut(f, EMPTY) for f in sorted(at_depth - paths, key=natural_key)),
        ),
    )


def without_classes(files: Files) -> Classes:
    """All images, none with a class."""
    return Classes((), tuple(files.members), (NO_LABEL,) * len(files.members), ())


def _holds_one_more(folders: Collection[str]) -> bool:
    """Whether all folders have one name and lie in others."""
    last = {posixpath.basename(folder) for folder in folders}
    is_nested = all("/" in folder for folder in folders)
    return is_nested and len(last) == 1 and (len(set(folders)) > 1 or last.pop().lower() in HOLDERS)


def _check_depths(files: Files, folders: Collection[str]) -> None:
    depths = {folder.count("/"): folder for folder in sorted(folders, reverse=True)}
    if len(depths) > 1:
        shallow, deep = depths[min(depths)], depths[max(depths)]
        raise NoClasses(
            f"{files.root} holds images at different depths, in {shallow}/ and in {deep}/, so "
            "it is not clear which folder is the class; put all class folders side by side."
        )


def _refuse_twins(files: Files, paths: Collection[str]) -> None:
    """Raise, naming two folders of one name."""
    seen: dict[str, str] = {}
    for path in sorted(paths):
        name, parent = posixpath.basename(path), posixpath.dirname(path)
        if name in seen:
            raise UserError(
                f"{files.root} has {name}/ in both {seen[name]}/ and {parent}/, which may be "
                "splits that are not to be mixed; give the one folder that is meant, or name the "
                "splits train, validation or test."
            )
        seen[name] = parent


def _archives(files: Files) -> str:
    names: Sequence[str] = [e.name for e in files.left_out if e.name.lower().endswith(".tar")]
    return f", but {names[0]}; give that file, or name it after its split" if names else ""
