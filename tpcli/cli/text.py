"""Text for a terminal: names from outside become plain characters, options their flags."""

from __future__ import annotations

import re


def visible(text: object) -> str:
    """`text` on one line, with every character that a terminal would act upon written out.

    Those are control characters, line ends, marks that turn the direction of writing, and bytes of
    file names that are no text.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def with_flags(message: str) -> str:
    """A message of the library, which names arguments in backticks, with flags in their place.

    `force` becomes --force, `batch_size=32` --batch-size 32, and `pretrained=False`
    --no-pretrained.
    """
    return re.sub(r"`([a-z][a-z_]*)(?:=([^`=]+))?`", _flag, message)


def _flag(found: re.Match[str]) -> str:
    name, value = found[1].replace("_", "-"), found[2]
    if value == "False":
        return f"--no-{name}"
    return f"--{name}" if value in (None, "True") else f"--{name} {value}"
