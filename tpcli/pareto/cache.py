"""Measured points on disk, shared by any number of processes and nodes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tpcli.errors import UserError
from tpcli.models.load import code_version
from tpcli.system.files import check_output, clear_litter, write_json
from tpcli.system.locks import locked

from .points import Point


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/tpcli`, or `~/.cache/tpcli`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tpcli"


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
        """Remember a point, atomically."""
        write_json(self.folder / f"{key}.json", point.to_file())

    def claim(self, key: str) -> AbstractContextManager[bool]:
        """Whether this process may measure the point; False while another one does.

        Raises:
            UserError: the cache can't be written.
        """
        return claimed(self.folder / f"{key}.json")


@contextmanager
def claimed(path: Path, timeout: float = 0) -> Iterator[bool]:
    """Whether this process may write a file of the cache; False while another one does.

    Raises:
        UserError: it can't be written.
    """
    try:
        check_output(path)
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"{reason}; choose another folder for the cache.") from None
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(locked(path.with_suffix(".lock"), timeout))
        except OSError:  # a lock that another user left; at worst both measure
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
