"""What lies in a folder or a .tar: images by their names, and what is left out, with the reason.

Nothing of a .tar is unpacked or written.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
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

log = logging.getLogger(__name__)


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
    """The files under a root.

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

    def add(self, member: Member) -> None:
        """Put a file where its name says that it belongs."""
        if is_image(member.name):
            self.members.append(member)
        elif member.name.endswith(CLASS):
            self.classes.append(member)
        else:
            self.left_out.append(LeftOut(member.name, OTHER_KIND))

    def sort(self) -> Files:
        """Put everything into natural order."""
        self.members.sort(key=lambda member: natural_key(member.name))
        self.folders.sort(key=natural_key)
        self.left_out.sort(key=lambda entry: natural_key(entry.name))
        return self


def in_folder(root: Path) -> Files:
    """List everything under a folder; links to folders are followed.

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
            else:
                files.add(Member(name))
    return files.sort()


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """List a folder, in the system's order.

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
    """Whether a file or folder is hidden, or made by the system."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name: str) -> bool:
    """Whether a file is an image by its suffix: any that Pillow decodes by itself."""
    return os.path.splitext(name)[1].lower() in suffixes()


REPLACED = "replaced by a later file of its name"
LOST = -1
DEEPEST_TAR = 1
"""Archives inside archives, as in ImageNet's training set: one level."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarFiles(Files):
    """Members of a .tar, each a run of bytes, so processes don't share a place in the file."""

    def open(self, member: Member) -> BinaryIO:
        """The bytes of an image.

        Raises:
            OSError: it is a link to nowhere.
        """
        if member.size == LOST:
            raise OSError(f"{member.name} has no bytes in {self.root}")
        with self.root.open("rb") as file:
            file.seek(member.offset)
            return io.BytesIO(file.read(member.size))


@dataclass
class Scan:
    """Entries read so far: regular files (offset, size), links (target)."""

    regular: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, None] = field(default_factory=dict)
    left_out: dict[LeftOut, None] = field(default_factory=dict)


def in_tar(root: Path) -> Files:
    """List everything in an uncompressed .tar; links are followed inside it.

    Raises:
        UserError: it is no .tar, compressed, or truncated.
    """
    scan = Scan()
    try:
        with root.open("rb") as file:
            _read(file, scan)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{root} can't be read as a .tar: {_reason(root, error)}.") from error
    files = TarFiles(root, folders=list(scan.folders), left_out=list(scan.left_out))
    for name, target in scan.links.items():
        files.add(Member(name, *_follow(target, scan)))
    for name, place in scan.regular.items():
        files.add(Member(name, *place))
    return files.sort()


def _read(file: BinaryIO, scan: Scan, *, prefix: str = "", start: int = 0, depth: int = 0) -> None:
    """Read the headers of one archive, which begins at byte `start` of the outermost one."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (entry := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # a million would fill the memory
            name = posixpath.join(prefix, _clean(entry.name))
            hidden = _hidden_part(name)
            if hidden is not None:
                scan.left_out[LeftOut(hidden, HIDDEN)] = None
                continue
            folder = name if entry.isdir() else posixpath.dirname(name)
            while folder:
                scan.folders[folder] = None
                folder = posixpath.dirname(folder)
            if entry.isdir():
                continue
            if name in scan.regular or name in scan.links:
                scan.left_out[LeftOut(name, REPLACED)] = None
                scan.regular.pop(name, None)
                scan.links.pop(name, None)
            if entry.islnk():
                scan.links[name] = posixpath.join(prefix, _clean(entry.linkname))
            elif entry.issym():
                scan.links[name] = _clean(posixpath.join(posixpath.dirname(name), entry.linkname))
            elif not entry.isfile():
                scan.left_out[LeftOut(name, NO_FILE)] = None
            elif entry.issparse():
                scan.regular[name] = (0, LOST)
            elif name.lower().endswith(".tar") and depth < DEEPEST_TAR:
                inner = tar.extractfile(entry)
                assert inner is not None
                inside = start + entry.offset_data
                folder = name[: -len(".tar")]
                scan.folders[folder] = None
                _read(inner, scan, prefix=folder, start=inside, depth=depth + 1)  # type: ignore[arg-type]
            else:
                scan.regular[name] = (start + entry.offset_data, entry.size)
        _check_end(file, tar.offset)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raise ReadError if an archive is truncated, or has data after its end mark."""
    file.seek(offset)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends without an end mark, so it was cut off")
    if any(mark):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")
    if any(file.read(2 * tarfile.RECORDSIZE)):
        raise tarfile.ReadError("there is more behind its end mark, such as a second archive")


def _reason(root: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with root.open("rb") as file:
        start = file.read(6)
    for magic, program in COMPRESSED.items():
        if start.startswith(magic):
            return f"it is compressed with {program}; decompress it first"
    why = str(error)
    if "unexpected end" in why or "truncated" in why:
        why = f"it is cut off ({why})" if start else "it is empty"
    return f"{why}; copy or pack it again"


def _clean(name: str) -> str:
    """A member name without leading ./, / and ../."""
    parts = posixpath.normpath(name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _hidden_part(name: str) -> str | None:
    """The name up to its first hidden part, or None."""
    ups = accumulate(name.split("/"), "{}/{}".format)
    return next((up for up in ups if is_hidden(posixpath.basename(up))), None)


def _follow(target: str, scan: Scan) -> tuple[int, int]:
    """Offset and size of the file that a chain of links leads to."""
    for _ in range(len(scan.links)):
        if target not in scan.links:
            break
        target = scan.links[target]
    return scan.regular.get(target, (0, LOST))


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
    """Sort key that puts a2 before a10, ignoring case."""
    parts = re.split(r"(\d+)", name.lower())
    digits = [part.lstrip("0") for part in parts[1::2]]
    key: list[object] = list(parts)
    key[1::2] = [(len(d), d) for d in digits]
    return key, name


def describe(left_out: Iterable[LeftOut], most: int = 3) -> str:
    """Summary of what was left out: reasons, counts and some names."""
    kinds: dict[str, list[str]] = {}
    for entry in left_out:
        kinds.setdefault(entry.why, []).append(entry.name)
    return "; ".join(f"{why}: {len(names)} ({some(names, most)})" for why, names in kinds.items())


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


@cache
def warn_once(message: str) -> None:
    """Log a warning, but once in a process."""
    log.warning("%s", message)
