"""Remember what was measured, so that a search that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tpcli.files import clear_litter, write_json

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
