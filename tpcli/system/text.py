"""Escape names for terminals, Markdown, HTML and CSV."""

from __future__ import annotations

import re
from html import escape

CONVENTION = "1 multiply-add = 1 FLOP"
"""What is counted as a FLOP."""


def visible(text: object) -> str:
    """`text` on one line, with every character that a terminal would act upon written out.

    Those are control characters, line ends, marks that turn the direction of writing, and bytes of
    file names that are no text.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def as_markdown(text: object) -> str:
    """`text` as Markdown that shows it as it is, also in a table."""
    marks = r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])"
    return escape(re.sub(marks, r"\\\g<0>", visible(text)), quote=False)


def as_code(text: object) -> str:
    """`text` as Markdown's code in a line."""
    shown = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def as_cell(text: str) -> str:
    """A name as a cell of a CSV file: one that a spreadsheet would take for a formula gets ./

    That is how one would type it, being the name of a folder or file.
    """
    return f"./{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
