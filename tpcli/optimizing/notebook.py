"""What was measured, a line each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tpcli.measures.scores import Each

FORMAT = "tpcli-optimize-notes/1"

ValueT = TypeVar("ValueT")


class Notebook:
    """Values by their keys, appended to a file as they are measured.

    What was written for another question (`identity`) is not used. A last line that was cut off is
    measured again.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._head = json.dumps({"format": FORMAT, "identity": digest})
        self._values: dict[str, Any] = {}
        lines = self._read()
        self.remembered = len(self._values)
        if path is not None:
            path.write_text("\n".join([self._head, *lines, ""]), encoding="utf-8")

    def _read(self) -> list[str]:
        """The whole lines after the head, whose values are kept."""
        if self._path is None or not self._path.is_file():
            return []
        head, *lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        if head != self._head:
            return []
        kept = []
        for line in lines[:-1]:
            try:
                key, value = json.loads(line)
            except ValueError:
                break
            self._values[key] = value
            kept.append(line)
        return kept

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of `key`, plain: that which is remembered, or else what `measure` says."""
        if key not in self._values:
            self._values[key] = measure()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self._values[key]]) + "\n")
        return self._values[key]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def each(self, key: str, measure: Callable[[], Each]) -> Each:
        """The same for a score of each image."""

        def plain() -> dict[str, Any]:
            each = measure()
            is_share = each.dtype == bool
            raw = np.packbits(each) if is_share else each.astype("<f4")
            text = base64.b64encode(raw.tobytes()).decode()
            return {"count": len(each), "is_share": is_share, "each": text}

        found = self(key, plain)
        raw = base64.b64decode(found["each"])
        if not found["is_share"]:
            return np.frombuffer(raw, dtype="<f4")
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=found["count"])
        return bits.astype(bool)

    def forget(self) -> None:
        """Remove the file; the work is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
