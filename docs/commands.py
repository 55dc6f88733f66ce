"""Write docs/reference/commands.md from the commands themselves: `python docs/commands.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.models import ArgumentInfo, ParameterInfo

from tpcli.cli.main import app

PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """# Commands

Each runs bare, on a built-in model and data. [Usage](../usage.md) has the forms of models, data and
schedules, and what is printed and written. This page is written by `python docs/commands.py` from
the commands themselves.
"""
KINDS = {str: "text", int: "integer", float: "number", Path: "path"}


def page() -> str:
    """The whole page, in Markdown."""
    commands = [(c.name or "", c.callback) for c in app.registered_commands if not c.hidden]
    return "\n".join([HEAD, *(section(name, call) for name, call in commands if call)])


def section(name: str, command: Callable[..., Any]) -> str:
    """One command: what it does, an example, its arguments, its options panel by panel."""
    text, _, example = inspect.cleandoc(command.__doc__ or "").partition("Example:")
    parts = [f"## tpcli {name}\n", escaped(text).strip() + "\n"]
    if example:
        parts.append("```\n" + " ".join(example.split()) + "\n```\n")
    described = [
        (parameter, *get_args(parameter.annotation)[:2])
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
    ]
    rows = [(panel(info), row(p, kind, info)) for p, kind, info in described if not info.hidden]
    order = list(dict.fromkeys(of for of, _ in rows))
    for of, members in groupby(sorted(rows, key=lambda r: order.index(r[0])), key=lambda r: r[0]):
        head = f"| {of} | values | | default |\n| --- | --- | --- | --- |"
        parts.append("\n".join([head, *(text for _, text in members)]) + "\n")
    return "\n".join(parts)


def panel(info: ParameterInfo) -> str:
    is_argument = isinstance(info, ArgumentInfo)
    return "Argument" if is_argument else str(info.rich_help_panel or "Options")


def row(parameter: inspect.Parameter, kind: Any, info: ParameterInfo) -> str:
    """A parameter's names, its values, what it is, its default."""
    value = parameter.default
    names = spelled(parameter, kind, info)
    if isinstance(info.show_default, str):
        shown = escaped(info.show_default)
    elif value is inspect.Parameter.empty:
        shown = "needed"
    elif isinstance(value, bool):
        shown = f"`{names[0 if value else 1]}`" if len(names) == 2 else ""  # a flag is off
    else:
        shown = "" if value is None else f"`{getattr(value, 'value', value)}`"
    cells = (
        ", ".join(f"`{name}`" for name in names),
        values(kind, info),
        escaped(info.help),
        shown,
    )
    return "| " + " | ".join((cell or "").replace("|", "\\|") for cell in cells) + " |"


def spelled(parameter: inspect.Parameter, kind: Any, info: ParameterInfo) -> list[str]:
    """As the user types it."""
    if isinstance(info, ArgumentInfo):
        return [re.sub(r"[^A-Z]", "", info.metavar or parameter.name.upper())]
    given = [str(part) for part in (info.default, *(info.param_decls or ())) if part is not ...]
    if given:  # inside Annotated the first declaration stands where a default would
        return [name for declared in given for name in declared.split("/")]
    name = parameter.name.replace("_", "-")
    return [f"--{name}", f"--no-{name}"] if inner(kind)[0] is bool else [f"--{name}"]


def inner(kind: Any) -> tuple[Any, bool]:
    """The type of one value, and whether several are taken."""
    for part in get_args(kind) if get_origin(kind) is not Literal else ():
        if part is not type(None) and get_origin(kind) is not list:
            return inner(part)
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def values(kind: Any, info: ParameterInfo) -> str:
    """The choices there are, or the kind of value and its range."""
    one, several = inner(kind)
    if one is bool:
        return ""
    if get_origin(one) is Literal:
        text = ", ".join(f"`{choice}`" for choice in get_args(one))
    elif inspect.isclass(one) and issubclass(one, Enum):
        text = ", ".join(f"`{choice.value}`" for choice in one)
    else:
        text = KINDS.get(one, one.__name__)
    low, high = info.min, info.max
    text += f" from {low}" if low is not None else ""
    text += f" to {high}" if high is not None else ""
    return text + (", repeated" if several else "")


def escaped(text: str | None) -> str:
    """Rich's tags away, signs of Markdown as they are, a paragraph on one line."""
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "")]
    joined = re.sub(r"\[/?(bold|italic|dim)\]", "", "\n\n".join(parts))
    return re.sub(r"([*_<>\[\]])", r"\\\1", joined)


if __name__ == "__main__":
    PAGE.write_text(page())
