"""Atomic writes, locks, and which existing files an output may replace."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tpcli.errors import TpcliError, UserError

PARTIAL = ".tpcli"
"""What the names of hidden folders end in, in which outputs are written until they are whole."""
REPLACED = "replaced"
LOCK = ".lock"


@dataclass(frozen=True)
class Kind:
    """A kind of output, and how to tell it from other people's files.

    name: with its article, such as "a schedule file". owns: whether the file or folder at a path
    is of this kind; asked only where something that is not empty lies there. It may raise OSError
    or ValueError, which count as no.
    """

    name: str
    owns: Callable[[Path], bool]


MARK = "made-by-tpcli"
"""Stands in the metadata of figures and exported programs, so that they are known as ours."""

MARK_ENDS = 2**16
"""Bytes at the beginning and at the end of a file in which the mark is looked for."""


def is_marked(path: Path) -> bool:
    """Whether `MARK` stands near the beginning or the end of a file.

    PNG's and SVG's metadata and ONNX's producer are at the beginning, PDF's and the names in a zip
    (.pt2) at the end.
    """
    with path.open("rb") as file:
        ends = file.read(MARK_ENDS)
        file.seek(max(0, path.stat().st_size - MARK_ENDS))
        return MARK.encode() in ends or MARK.encode() in file.read()


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where it holds something else."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return document if isinstance(document, dict) else {}


def has_format(*formats: str) -> Callable[[Path], bool]:
    """A test whether a file is a JSON object whose `format` is one of these."""
    return lambda path: json_object(path).get("format") in formats


def holds_only(
    known: Collection[str], mark: str, owns: Callable[[Path], bool] = Path.is_file
) -> Callable[[Path], bool]:
    """A test whether a folder holds nothing but files of these names, among them ours.

    Args:
        known: the names that such a folder may hold.
        mark: the file that it must hold, and on which `owns` decides.

    Raises (the test):
        UserError: it holds something else beside what is ours; says what.
    """

    def test(folder: Path) -> bool:
        if not (folder / mark).is_file() or not owns(folder / mark):
            return False
        foreign = sorted(name for name in _names(folder) if name not in known)
        if foreign:
            raise UserError(
                f"{folder} holds {foreign[0]!r} of other origin, so it is not replaced; move that "
                "away, or choose another folder."
            )
        return True

    return test


def check_output(
    path: Path, force: bool = True, is_folder: bool = False, kind: Kind | None = None
) -> None:
    """Raise unless `path` can be written later, and what lies there may be replaced.

    An empty file or folder belongs to nobody, so it is replaced in any case. Links are judged by
    what they lead to, for that is what would be replaced.

    Args:
        force: whether an output that exists is replaced at all.
        is_folder: a folder is to be written there, not a file.
        kind: the only kind of output that is replaced; any where None.

    Raises:
        UserError: something is there and `force` is off, or it is not of `kind`, is a folder where
            a file is to be and the other way round, or a device or a pipe; its folder is missing
            and can't be made, or is not writable.
    """
    clear_litter(path.absolute().parent, path.name)
    if path.exists():
        _check_existing(path, force, is_folder, kind)
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{path} can't be written: {folder} is a file; choose another `out`.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{_final(path)} can't be written: {error.strerror} in {_final(folder)}; choose "
            "another `out`."
        ) from None


def _check_existing(path: Path, force: bool, is_folder: bool, kind: Kind | None) -> None:
    found = "a folder" if path.is_dir() else "a file" if path.is_file() else "no regular file"
    if found != ("a folder" if is_folder else "a file"):
        raise UserError(f"{path} is {found}; choose another `out`.")
    is_replaced = kind is not None or not force
    if is_folder and is_replaced and Path.cwd().is_relative_to(path.resolve()):
        raise UserError(
            f"{path} is the current folder or one above it, which is never replaced; choose "
            "another folder."
        )
    try:
        is_empty = not (_names(path) if is_folder else path.stat().st_size)
        is_ours = is_empty or kind is None or not force or kind.owns(path)
    except (OSError, ValueError, RecursionError):
        is_empty = is_ours = False
    if not is_empty and not force:
        raise UserError(f"{path} exists already; choose another `out` or add `force`.")
    if kind is not None and not is_ours:
        raise UserError(
            f"{path} exists and is not {kind.name}, so it is not replaced; move it away, or choose "
            "another `out`."
        )


def _names(folder: Path) -> list[str]:
    """Names in a folder, without hidden files of unfinished writes."""
    return [entry.name for entry in folder.iterdir() if not entry.match(f".*{PARTIAL}")]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the body succeeds, else vanishes.

    The body may create a file or a folder there. It is on the disk before it takes the place of
    what was there, and has the mode that new files have here.

    Raises:
        TpcliError: it can't be written; what was there is left as it was.
    """
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(path) as work:
            try:
                yield work / path.name
                settle(work / path.name)
                swap(work / path.name, path, work / REPLACED)
            except Exception as error:  # before the failed file goes, and its space is free again
                reason = why_not_written(error, work)
                if reason is None:
                    raise
                raise TpcliError(f"{_final(path)} could not be written: {reason}.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise TpcliError(f"{_final(path)} could not be written: {reason}.") from error


def _final(path: Path) -> Path:
    """Where a path in a hidden folder lies once that is in its place; others are as they are."""
    return Path(*(part for part in path.parts if not fnmatch(part, f".*{PARTIAL}")))


@contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, removed in the end; by the next writer of `path` after a kill.

    A folder of its own, so that what is written in it keeps the suffix of its name.
    """
    clear_litter(path.parent, path.name)
    with ExitStack() as stack:
        work = None
        while work is None:  # who clears litter up may take a new folder for that
            made = tempfile.mkdtemp(PARTIAL, f".{_stem(path.name)}.", path.parent)
            with suppress(FileNotFoundError):
                if stack.enter_context(locked(Path(made) / LOCK)) is None:
                    work = Path(made)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        yield work


def clear_litter(folder: Path, name: str | None = None) -> None:
    """Clear away what killed processes left of writing the file `name`, or any file, in `folder`.

    A folder that was moved aside and whose successor was not yet in its place is put back.
    """
    pattern = "*" if name is None else glob.escape(_stem(name))
    for work in folder.glob(f".{pattern}.*{PARTIAL}"):
        with suppress(OSError), locked(work / LOCK) as holder:
            if holder is None:
                put_back(work / REPLACED, folder)
                shutil.rmtree(work)


def _stem(name: str) -> str:
    return name[:50]  # so that the name of the hidden folder is not too long


@contextmanager
def locked(path: Path, timeout: float = 0) -> Iterator[str | None]:
    """Hold the lock file `path` in the body, and remove it afterwards.

    Yields None, or who holds it where that is someone else.

    Args:
        timeout: seconds to wait for it; -1 to wait as long as it takes.

    Raises:
        OSError: the lock file can't be made or opened.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        yield _holder(path)
        return
    try:
        with suppress(OSError):  # a full disk; then others don't learn who it is
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            path.write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now})
            )
        yield None
    finally:
        with suppress(OSError):  # Windows removes no open file; it is used again
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def settle(path: Path) -> None:
    """Have a file, or a folder with all that is in it, on the disk, and of a new file's mode."""
    if path.is_dir():
        for entry in path.iterdir():
            settle(entry)
    else:
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)
    flush(path)


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk, not only in the system's memory."""
    if path.is_dir() and os.name == "nt":  # has no such thing
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(fresh: Path, path: Path, aside: Path) -> None:
    """Put `fresh` at `path`; a folder there is moved into the folder `aside` first.

    The caller removes `aside`. Where this fails or the process is killed, `path` is as it was, or
    complete, or `put_back` helps.
    """
    old = aside / path.name
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder:
        aside.mkdir(exist_ok=True)
        path.rename(old)
    try:
        os.replace(fresh, path)
    except OSError:
        if is_folder:
            old.rename(path)
        raise
    flush(path.parent)


def put_back(aside: Path, folder: Path) -> None:
    """Undo a `swap` in `folder` that was cut off halfway."""
    for old in aside.glob("*"):
        if not (folder / old.name).exists():
            old.rename(folder / old.name)


def why_not_written(error: Exception, folder: Path) -> str | None:
    """The reason in words where `error` says that a file in `folder` could not be written."""
    text = str(error)
    full = {errno.ENOSPC, errno.EDQUOT}
    if isinstance(error, OSError) and error.errno not in full:
        return error.strerror or text
    # what torch and safetensors write, they write by themselves, and have errors of their own
    is_torch = any(sign in text for sign in ("inline_container", "PytorchStreamWriter"))
    if not (isinstance(error, OSError) or is_torch or type(error).__name__ == "SafetensorError"):
        return None
    free = shutil.disk_usage(folder).free
    is_full = isinstance(error, OSError) or "os error 28" in text or free < 2**20
    return os.strerror(errno.ENOSPC) if is_full else text.splitlines()[0].rstrip(".")


def write_text(path: Path, text: str, force: bool = True) -> None:
    """Write `text` atomically; bytes of file names that are no text are written as they are."""
    check_output(path, force)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, document: Any, force: bool = True) -> None:
    """Write `document` as indented JSON, atomically."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n", force)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path.")
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is not a readable JSON file: it is no file at all.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file: {error}.") from None
