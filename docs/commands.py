"""Write docs/reference/commands.md from the commands themselves: `python docs/commands.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

from typer.models import ArgumentInfo, ParameterInfo

from tpcli.cli.main import app
from tpcli.cli.option_groups import described

PAGE = Path(__file__).parent / "reference" / "commands.md"
HEAD = """# Commands

Each runs bare, on a built-in model and data. [Usage](../usage.md) has the forms of models, data and
schedules, and what is printed and written. This page is written by `python docs/commands.py` from
the commands themselves.
"""


def page() -> str:
    """The whole page, in Markdown."""
    commands = [(c.name or "", c.callback) for c in app.registered_commands if not c.hidden]
    return "\n".join([HEAD, *(section(name, call) for name, call in commands if call)])


def section(name: str, command: Callable[..., Any]) -> str:
    """One command: what it does, examples, its arguments, its options panel by panel."""
    text, examples = described(command.__doc__)
    parts = [f"## tpcli {name}\n", escaped(text) + "\n", f"```\n{examples}\n```\n"]
    panels: dict[str, list[str]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, info = get_args(parameter.annotation)[:2]
        if not info.hidden:
            panels.setdefault(panel(info), []).append(row(parameter, kind, info))
    for title, rows in panels.items():
        parts.append("\n".join([f"| {title} | | default |", "| --- | --- | --- |", *rows]) + "\n")
    return "\n".join(parts)


def panel(info: ParameterInfo) -> str:
    is_argument = isinstance(info, ArgumentInfo)
    return "Argument" if is_argument else str(info.rich_help_panel or "Options")


def row(parameter: inspect.Parameter, kind: Any, info: ParameterInfo) -> str:
    """A parameter as it is typed, what it is, what it is where it is left out."""
    value, names = parameter.default, spelled(parameter, kind, info)
    if isinstance(info.show_default, str):
        default = escaped(info.show_default)
    elif value is inspect.Parameter.empty:
        default = "needed"
    elif isinstance(value, bool):
        default = f"`{names[0 if value else 1]}`" if len(names) == 2 else ""  # a flag is off
    else:
        default = "" if value is None else f"`{getattr(value, 'value', value)}`"
    typed = ", ".join(f"`{name}`" for name in names)
    repeated = ", repeated" if holds(kind, list) else ""
    cells = (typed + repeated, escaped(info.help), default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spelled(parameter: inspect.Parameter, kind: Any, info: ParameterInfo) -> list[str]:
    """As the user types it, with what stands for the value."""
    if isinstance(info, ArgumentInfo):
        return [info.metavar or parameter.name.upper()]
    given = [str(part) for part in (info.default, *(info.param_decls or ())) if part is not ...]
    name = "--" + parameter.name.replace("_", "-")
    if not holds(kind, bool):
        return [f"{flag} {info.metavar or 'VALUE'}" for flag in given or [name]]
    if given:  # inside Annotated the first declaration stands where a default would
        return [flag for declared in given for flag in declared.split("/")]
    return [name, name.replace("--", "--no-", 1)]


def holds(kind: Any, wanted: type) -> bool:
    """Whether `wanted` is in an annotation such as `bool | None` or `list[str] | None`."""
    parts = get_args(kind)
    return wanted in (kind, get_origin(kind)) or any(holds(part, wanted) for part in parts)


def escaped(text: str | None) -> str:
    """Rich's tags away, signs of Markdown as they are, a paragraph on one line."""
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "")]
    joined = re.sub(r"\[/?(bold|italic|dim)\]", "", "\n\n".join(parts))
    return re.sub(r"([*_<>\[\]])", r"\\\1", joined)


if __name__ == "__main__":
    PAGE.write_text(page())
