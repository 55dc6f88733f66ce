"""Measured points on disk, shared by any number of processes and nodes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tpcli.files import write_json

from .points import Point


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/tpcli`, or `~/.cache/tpcli`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tpcli"


@cache
def code_version(is_trained: bool = False) -> str:
    """A hash of the sources that decide what a point measures, those of training where it is."""
    package = Path(__file__).parents[1]
    aside = {"cli", "report"} | (set() if is_trained else {"finetune"})
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        if source.relative_to(package).parts[0] not in aside:
            digest.update(source.read_bytes())
    return digest.hexdigest()


def point_key(**determinants: Any) -> str:
    """A hash of everything that determines a point."""
    document = {**determinants, "code": code_version("recipe" in determinants)}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


class PointCache:
    """One JSON file per point; a lock beside it while the point is being measured.

    The lock is the operating system's, so a process that dies gives it up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "points"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Point | None:
        """The point, if it has been measured."""
        try:
            return Point.from_dict(json.loads((self.folder / f"{key}.json").read_text()))
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None

    def put(self, key: str, point: Point) -> None:
        """Remember a point, atomically."""
        write_json(self.folder / f"{key}.json", point.to_dict(with_correct=True))

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may measure the point; False while another one does."""
        lock = FileLock(self.folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()
