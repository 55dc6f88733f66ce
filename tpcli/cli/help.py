"""What --help prints: use, words, examples, options panel by panel; on a terminal of any width."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand

WIDEST = 100
"""Characters of a line at most; longer ones are hard to read."""
NAMES = 30
"""Characters of an option that stands beside what it does."""


def described(docstring: str | None) -> tuple[str, str]:
    """The words of a docstring, each paragraph on a line, and its examples as they stand."""
    text, _, examples = inspect.cleandoc(docstring or "").partition("Examples:\n")
    paragraphs = (" ".join(lines.split()) for lines in text.strip().split("\n\n"))
    return "\n\n".join(paragraphs), textwrap.dedent(examples).strip()


class Command(TyperCommand):
    """A command whose epilog is its examples, and whose options stand by their panels.

    Nothing is cut: an option that is longer than its column has a line of its own.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write all of it."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write(textwrap.indent(self.epilog, " " * formatter.current_indent) + "\n")
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = f"{parameter.param_type_name}s".capitalize()
                panel = getattr(parameter, "rich_help_panel", None) or panel
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                room = formatter.width - formatter.current_indent
                for line in lines(records, room):
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def lines(records: Sequence[tuple[str, str]], room: int) -> Iterator[str]:
    """Options and what they do, side by side, broken between words alone."""
    names = [re.sub(r" <.*>$", "", name) for name, _ in records]  # MODEL <str> is a MODEL
    width = max((len(name) for name in names if len(name) <= NAMES), default=0)
    for name, (_, text) in zip(names, records, strict=True):
        text = re.sub(r" +\[default: \(?(.*?)\)?\]$", r" [default: \1]", text)
        wrapped = textwrap.wrap(
            text, room - width - 2, break_on_hyphens=False, break_long_words=False
        )
        if len(name) > width:
            yield name
            name = ""
        for i, line in enumerate(wrapped or [""]):
            yield f"{'' if i else name:<{width}}  {line}".rstrip()
