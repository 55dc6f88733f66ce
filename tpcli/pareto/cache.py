"""Measured points on disk, shared by any number of processes and nodes."""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tpcli.errors import TpcliError, UserError
from tpcli.models.load import code_version
from tpcli.system.files import check_output, clear_litter, locked, write_json

from .points import Point

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/tpcli`, or `~/.cache/tpcli`; a relative variable is ignored, as XDG says."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    parent = given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache")
    return Path(parent) / "tpcli"


def usable_folder(folder: Path) -> Path:
    """`folder`, or a temporary one where nothing can be written there; this is logged.

    One that can't be written but holds points serves these.
    """
    if (folder / "points").is_dir():
        return folder
    try:
        if not folder.is_absolute() and str(folder).startswith("~"):
            raise UserError("there is no home folder; choose another")
        check_output(folder / "points", is_folder=True)
    except UserError as error:
        _say_unwritable(str(error).partition(";")[0])
        folder = Path(tempfile.mkdtemp(prefix="tpcli-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _say_unwritable(reason: str) -> None:
    log.warning("measured points are not kept: %s; choose another folder for the cache", reason)


def point_key(**determinants: Any) -> str:
    """A hash of everything that determines a point."""
    document = {**determinants, "code": code_version("recipe" in determinants)}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


class PointCache:
    """One JSON file per point; a lock beside it while the point is being measured.

    The lock is the operating system's, so a process that dies gives it up. A cache that can't be
    written serves the points that it has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "points"
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            _tidy(self.folder)
            _tidy(folder / "searches")

    def get(self, key: str) -> Point | None:
        """The point, if it has been measured and what is there is whole."""
        try:
            return Point.from_file(json.loads((self.folder / f"{key}.json").read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, key: str, point: Point) -> None:
        """Remember a point, atomically, where the cache can be written."""
        remember(self.folder / f"{key}.json", point.to_file())

    def claim(self, key: str) -> AbstractContextManager[bool]:
        """Whether this process may measure the point; False while another one does."""
        return claimed(self.folder / f"{key}.json")


def remember(path: Path, document: Any) -> None:
    """Write a file of the cache, atomically; where it can't be written, say so once."""
    try:
        write_json(path, document)
    except TpcliError as error:
        _say_unwritable(str(error.__cause__ or error).partition(";")[0])


@contextmanager
def claimed(path: Path, timeout: float = 0) -> Iterator[bool]:
    """Whether this process may write a file of the cache; False while another one does."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(locked(path.with_suffix(".lock"), timeout))
        except OSError:  # read-only, or a lock that another user left; at worst both measure
            holder = None
        yield holder is None


def _tidy(folder: Path) -> None:
    """Clear away what processes left that died: half a file, or what a whole one made needless."""
    clear_litter(folder)
    for lock in folder.glob("*.lock"):
        if lock.with_suffix(".json").exists():
            with locked(lock) as holder:  # which goes with its file
                if holder is None:
                    lock.with_suffix(".part").unlink(missing_ok=True)
