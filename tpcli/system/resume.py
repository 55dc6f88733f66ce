"""Remember what was measured, so that a search that was stopped goes on where it was."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tpcli.stats import Each

from .files import clear_litter, write_json

FORMAT = "tpcli-search/2"


Key = tuple[int | str, ...]
"""What a value is of: in words how it was pooled, and tokens per block."""


class Memory:
    """Values that are written down one after another.

    A search asks for the same values in the same order again, so they are all the state there is.
    What was written for another question (`identity`) is not used.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        text = json.dumps(identity, sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self.values: dict[Key, float] = {}
        if path is not None and path.is_file():
            self.values = self._read(path)
        self.remembered = len(self.values)

    def __call__(self, key: Key, measure: Callable[[], float]) -> float:
        """The value of `key`: that which is remembered, or else what `measure` says."""
        if key not in self.values:
            self.values[key] = measure()
            if self._path is not None:
                measured = [[list(known), value] for known, value in self.values.items()]
                document = {"format": FORMAT, "identity": self._identity, "measured": measured}
                write_json(self._path, document)
        return self.values[key]

    def _read(self, path: Path) -> dict[Key, float]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or document["identity"] != self._identity:
                return {}
            found = {tuple(key): float(value) for key, value in document["measured"]}
            return found if all(map(math.isfinite, found.values())) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def forget(self) -> None:
        """Remove the file, and what killed processes left of writing it; the search is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            clear_litter(self._path.parent, self._path.name)


NOTEBOOK_FORMAT = "tpcli-optimize-notes/1"

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
        self._head = json.dumps({"format": NOTEBOOK_FORMAT, "identity": digest})
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
