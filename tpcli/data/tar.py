"""What lies in a .tar, also in archives inside it. Nothing is unpacked or written."""

from __future__ import annotations

import io
import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tpcli.errors import UserError

from .listing import CLASS, HIDDEN, NO_FILE, OTHER_KIND, Files, LeftOut, Member, is_hidden, is_image

REPLACED = "replaced by a later file of its name"
LOST = -1
DEEPEST = 1
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
    """Names met so far: of regular files (offset, size), of links (what they point to)."""

    files: TarFiles
    regular: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, None] = field(default_factory=dict)
    left_out: dict[LeftOut, None] = field(default_factory=dict)


def in_tar(root: Path) -> TarFiles:
    """Everything in an uncompressed .tar; links are followed inside it.

    Raises:
        UserError: it is none, it is compressed, or it is cut off.
    """
    scan = Scan(TarFiles(root))
    try:
        with root.open("rb") as file:
            _read(file, scan, prefix="", start=0, depth=0)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{root} can't be read as a .tar: {_reason(root, error)}.") from error
    files = scan.files
    for name, target in scan.links.items():
        offset, size = _follow(target, scan)
        _add(Member(name, offset, size), scan)
    for name, (offset, size) in scan.regular.items():
        _add(Member(name, offset, size), scan)
    files.folders = list(scan.folders)
    files.left_out = list(scan.left_out)
    files.sort()
    return files


def _add(member: Member, scan: Scan) -> None:
    if is_image(member.name):
        scan.files.members.append(member)
    elif member.name.endswith(CLASS):
        scan.files.classes.append(member)
    else:
        scan.left_out[LeftOut(member.name, OTHER_KIND)] = None


def _read(file: BinaryIO, scan: Scan, *, prefix: str, start: int, depth: int) -> None:
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
            elif name.lower().endswith(".tar") and depth < DEEPEST:
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
    """Raise where an archive ends without its end mark, or goes on behind it."""
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
    """A name in an archive without ./, / and ../ at its front."""
    parts = posixpath.normpath(name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _hidden_part(name: str) -> str | None:
    """The name up to its first hidden part, or None."""
    parts = name.split("/")
    for i, part in enumerate(parts):
        if is_hidden(part):
            return "/".join(parts[: i + 1])
    return None


def _follow(target: str, scan: Scan) -> tuple[int, int]:
    """Where the file at the end of a chain of links is."""
    for _ in range(len(scan.links)):
        if target not in scan.links:
            break
        target = scan.links[target]
    return scan.regular.get(target, (0, LOST))
