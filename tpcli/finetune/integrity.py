"""Whether a checkpoint is what was written."""

from __future__ import annotations

import zlib
from pathlib import Path

from tpcli.errors import UserError
from tpcli.files import read_json

PROGRESS = "progress.json"
"""Where a run is, and size and checksum of every other file of the checkpoint."""


def what_is_wrong(checkpoint: Path, thoroughly: bool = False) -> str | None:
    """Why a checkpoint is not complete, or None; `thoroughly` reads all that is in it."""
    try:
        files = read_json(checkpoint / PROGRESS).get("files", {})  # older versions wrote none
        for name, (size, crc) in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"is incomplete: it has no {name}"
            if path.stat().st_size != size or (thoroughly and checksum(path) != [size, crc]):
                return f"is damaged: {name} is not what was written"
    except (UserError, OSError, AttributeError, TypeError, ValueError):
        return f"is incomplete: its {PROGRESS} can't be read"
    return None


def checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]
