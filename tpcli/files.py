"""Files that are either whole or not there: write beside the target, then rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpcli.errors import TpcliError, UserError


def check_output(path: Path, force: bool = True, is_folder: bool = False) -> None:
    """Fail now if `path` could not be written later.

    Args:
        is_folder: a folder is to be written there, not a file.

    Raises:
        UserError: it exists and `force` is off, or is a folder where a file is to be and the other
            way round; its folder is missing and can't be made, or is not writable.
    """
    if path.exists() and path.is_dir() != is_folder:
        found = "a file" if is_folder else "a folder"
        raise UserError(f"{path} is {found}; choose another --out.")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; choose another --out or add --force.")
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{path} can't be written: {folder} is a file; choose another --out.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {error.strerror} in {folder}; choose another --out."
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the body succeeds, else vanishes.

    The body may create a file or a folder there. A folder that is replaced is moved aside first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a folder of its own, so that what the body writes keeps the suffix of its name
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    fresh = work / path.name
    try:
        yield fresh
        _swap(fresh, path, aside=work / "replaced")
    except OSError as error:
        raise TpcliError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(fresh: Path, path: Path, aside: Path) -> None:
    """Put `fresh` at `path`; a folder there is moved aside first, and back if that fails."""
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder:
        path.rename(aside)
    try:
        os.replace(fresh, path)
    except OSError:
        if is_folder:
            aside.rename(path)
        raise


def write_text(path: Path, text: str, force: bool = True) -> None:
    """Write `text` atomically."""
    check_output(path, force)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any, force: bool = True) -> None:
    """Write `document` as indented JSON, atomically."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n", force)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a readable JSON file: {error}.") from None
