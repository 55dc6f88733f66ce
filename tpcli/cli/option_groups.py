"""Commands from functions: groups of options in their signature, and the page of `--help`."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from .verbosity import QuietOption, VerboseOption, speak

Result = TypeVar("Result")


def add(app: typer.Typer, name: str, function: Callable[..., object]) -> None:
    """Make `function` the command `name`; its docstring, without the wraps, is the help."""
    text, examples = described(function.__doc__)
    short = text.partition(". ")[0].partition("\n")[0].rstrip(".")
    make = app.command(name, cls=Command, help=text, short_help=short, epilog=examples)
    make(spread(function))


def spread(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let typer see the fields of dataclass parameters as options of their own.

    `def command(model: ModelGroup)` becomes a command with one option per field of `ModelGroup`;
    the function itself is called with the groups reassembled. The group's `PANEL` is where the help
    shows those that name no panel. Every command also has --quiet and --verbose.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = _declared(hints[name])
        if not is_dataclass(hint):
            parameters.append(parameter.replace(annotation=hint))
            continue
        groups[name] = hint  # type: ignore[assignment]
        field_hints = get_type_hints(hint, include_extras=True)
        for field in fields(hint):
            declared = field_hints[field.name]
            panel = declared.__metadata__[0].rich_help_panel or getattr(hint, "PANEL", None)
            declared.__metadata__[0].rich_help_panel = panel
            parameters.append(_keyword(field.name, field.default, declared))
    parameters.append(_keyword("quiet", False, QuietOption))
    parameters.append(_keyword("verbose", False, VerboseOption))

    @functools.wraps(function)
    def command(*, quiet: bool, verbose: bool, **values: Any) -> Result:
        if quiet or verbose:  # said behind the command, not before it
            speak(quiet=quiet, verbose=verbose)
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        return function(**values)

    parameters.sort(key=lambda p: p.kind)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _keyword(name: str, default: Any, hint: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=hint)


def _declared(hint: Any) -> Any:
    """A hint as it was written: Python 3.10 makes `Annotated[...] = None` optional once more."""
    inside = [part for part in get_args(hint) if get_origin(part) is Annotated]
    return inside[0] if get_origin(hint) is Union and inside else hint


WIDEST = 100
"""Characters in a line at most; longer lines are hard to read."""
NAMES = 26
"""Characters of the column of option names; a longer name has a line of its own."""


def described(docstring: str | None) -> tuple[str, str]:
    """The paragraphs of a docstring, each on one line, and its examples unchanged."""
    text, _, examples = inspect.cleandoc(docstring or "").partition("Examples:\n")
    paragraphs = (" ".join(lines.split()) for lines in text.strip().split("\n\n"))
    return "\n\n".join(paragraphs), textwrap.dedent(examples).strip()


class Command(TyperCommand):
    """A command that shows its examples first, then its options by panel."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole page."""
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
                for line in two_columns(records, room):
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def two_columns(records: Sequence[tuple[str, str]], room: int) -> Iterator[str]:
    """Lines with an option at the left and its help at the right, broken between words only."""
    names = [re.sub(r" <.*>$", "", name) for name, _ in records]  # MODEL <str> becomes MODEL
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
