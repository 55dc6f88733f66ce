"""Text for a terminal: options by their flags."""

from __future__ import annotations

import re

from tpcli.text import visible as visible

FLAGS = {"file_format": "format", "compiled": "compile"}
"""Options that are not called as the library's arguments are."""


def with_flags(message: str) -> str:
    """A message of the library, which names arguments in backticks, with flags in their place.

    `force` becomes --force, `batch_size=32` --batch-size 32, and `pretrained=False`
    --no-pretrained.
    """
    return re.sub(r"`([a-z][a-z_]*)(?:=([^`=]+))?`", _flag, message)


def _flag(found: re.Match[str]) -> str:
    name, value = FLAGS.get(found[1], found[1]).replace("_", "-"), found[2]
    if value == "False":
        return f"--no-{name}"
    return f"--{name}" if value in (None, "True") else f"--{name} {value}"
