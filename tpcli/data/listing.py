"""What lies under a folder: images by their names, and what is left out, with the reason."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tpcli.errors import UserError

CLASS = ".cls"
"""Suffix of the label that a webdataset has beside each image."""
HIDDEN = "hidden"
OTHER_KIND = "no image by its name"
NO_FILE = "no regular file"
LOOP = "a link to a folder above it"
SYSTEM = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")
"""Folders that systems leave behind; as good as hidden."""

NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow knows by name but decodes with another program, or not at all."""


class Member(NamedTuple):
    """An image: its name under the root, with / between parts, and its place in a .tar."""

    name: str
    offset: int = 0
    size: int = 0


class LeftOut(NamedTuple):
    """A file or folder that does not count, and why."""

    name: str
    why: str


@dataclass
class Files:
    """What was found under a root.

    members: images, by their names. classes: files `.cls` beside them, as in a webdataset, with the
    index of a class each. folders: those that are not hidden. left_out: the rest.
    """

    root: Path
    members: list[Member] = field(default_factory=list)
    classes: list[Member] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def open(self, member: Member) -> BinaryIO:
        """The bytes of an image.

        Raises:
            OSError: it is not there, or no regular file.
        """
        path = self.root / member.name
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise OSError(f"{path} is {NO_FILE}")
        return path.open("rb")

    def sort(self) -> Files:
        """Put everything into natural order."""
        self.members.sort(key=lambda member: natural_key(member.name))
        self.folders.sort(key=natural_key)
        self.left_out.sort(key=lambda entry: natural_key(entry.name))
        return self


def in_folder(root: Path) -> Files:
    """Everything under a folder; links to folders are followed.

    Raises:
        UserError: a folder can't be listed.
    """
    files = Files(root)
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, above = waiting.pop()
        here = (root / folder).stat()
        above = (*above, (here.st_dev, here.st_ino))
        for entry in entries(root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                files.left_out.append(LeftOut(name, HIDDEN))
            elif is_folder(entry):
                target = entry.stat() if entry.is_symlink() else None
                if target is not None and (target.st_dev, target.st_ino) in above:
                    files.left_out.append(LeftOut(name, LOOP))
                else:
                    files.folders.append(name)
                    waiting.append((name, above))
            elif is_image(name):
                files.members.append(Member(name))
            elif name.endswith(CLASS):
                files.classes.append(Member(name))
            else:
                files.left_out.append(LeftOut(name, OTHER_KIND))
    return files.sort()


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, in the system's order.

    Raises:
        UserError: it can't be listed.
    """
    try:
        with os.scandir(folder) as listing:
            yield from listing
    except OSError as error:
        raise UserError(f"{folder} can't be read: {error.strerror}; check its rights.") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix: any that Pillow decodes by itself."""
    return os.path.splitext(name)[1].lower() in suffixes()


@cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it decodes by itself."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_DECODED)


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of images, in lower case, each with its dot."""
    from PIL import Image

    known = formats()
    return frozenset(s for s, name in Image.registered_extensions().items() if name in known)


def natural_key(name: str) -> tuple[list[object], str]:
    """Sorts a2 before a10, in any capitals."""
    parts = re.split(r"(\d+)", name.lower())
    digits = [part.lstrip("0") for part in parts[1::2]]
    key: list[object] = list(parts)
    key[1::2] = [(len(d), d) for d in digits]
    return key, name


def describe(left_out: Iterable[LeftOut], most: int = 3) -> str:
    """Why things were left out, how many, and some of their names; empty where there are none."""
    kinds: dict[str, list[str]] = {}
    for entry in left_out:
        kinds.setdefault(entry.why, []).append(entry.name)
    return "; ".join(
        f"{why}: {len(names)} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
        for why, names in kinds.items()
    )
