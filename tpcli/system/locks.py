"""Locks between processes: the system takes them back when their holder dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


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
