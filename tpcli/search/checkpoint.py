"""Remember what was measured, so that a search that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tpcli.files import clear_litter, write_json
from tpcli.schedule import Tokens

FORMAT = "tpcli-search/1"


class Memory:
    """A function of schedules that is written down after every new value.

    A search asks for the same schedules in the same order again, so its values are all the state
    there is. What was written for another question (`identity`) is not used.
    """

    def __init__(
        self, function: Callable[[Tokens], float], path: Path | None, identity: Mapping[str, Any]
    ) -> None:
        self._function = function
        self._path = path
        text = json.dumps(identity, sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self.values: dict[Tokens, float] = {}
        if path is not None and path.is_file():
            self.values = self._read(path)
        self.remembered = len(self.values)

    def __call__(self, tokens: Tokens) -> float:
        if tokens not in self.values:
            self.values[tokens] = self._function(tokens)
            if self._path is not None:
                measured = [[list(tokens), value] for tokens, value in self.values.items()]
                document = {"format": FORMAT, "identity": self._identity, "measured": measured}
                write_json(self._path, document)
        return self.values[tokens]

    def _read(self, path: Path) -> dict[Tokens, float]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or document["identity"] != self._identity:
                return {}
            found = {tuple(tokens): float(value) for tokens, value in document["measured"]}
            return found if all(map(math.isfinite, found.values())) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def forget(self) -> None:
        """Remove the file, and what killed processes left of writing it; the search is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            clear_litter(self._path.parent, self._path.name)
