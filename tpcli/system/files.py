"""Files that are either whole or not there: write beside the target, then rename."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tpcli.errors import TpcliError, UserError

from .locks import locked

PARTIAL = ".tpcli"
"""What the names of hidden folders end in, in which outputs are written until they are whole."""
REPLACED = "replaced"
LOCK = ".lock"


def check_output(path: Path, force: bool = True, is_folder: bool = False) -> None:
    """Fail now if `path` could not be written later.

    Args:
        is_folder: a folder is to be written there, not a file.

    Raises:
        UserError: it exists and `force` is off, or is a folder where a file is to be and the other
            way round; its folder is missing and can't be made, or is not writable.
    """
    clear_litter(path.absolute().parent, path.name)
    if path.exists() and path.is_dir() != is_folder:
        found = "a file" if is_folder else "a folder"
        raise UserError(f"{path} is {found}; choose another `out`.")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; choose another `out` or add `force`.")
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
            f"{path} can't be written: {error.strerror} in {folder}; choose another `out`."
        ) from None


def check_replaceable(folder: Path, kind: str, known: Collection[str], mark: str) -> None:
    """Raise unless replacing `folder` could lose nothing but `kind`, such as "a run".

    Args:
        known: the names that such a folder may hold. mark: the one that it must hold.

    Raises:
        UserError: it is the current folder or above it, or holds something else; says what.
    """
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(
            f"{folder} is the current folder or one above it, which is never replaced; choose "
            "another folder."
        )
    names = sorted(entry.name for entry in folder.iterdir() if not entry.match(f".*{PARTIAL}"))
    foreign = [name for name in names if name not in known]
    if names and mark not in names:
        raise UserError(
            f"{folder} holds {names[0]!r} and is not {kind}, so it is not replaced; choose another "
            "folder."
        )
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]!r}, which is no part of {kind}, so it is not replaced; "
            "move that away, or choose another folder."
        )


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
                raise TpcliError(f"{path} could not be written: {reason}.") from error
    except OSError as error:
        raise TpcliError(f"{path} could not be written: {error.strerror or error}.") from error


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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file: {error}.") from None
