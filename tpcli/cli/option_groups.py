"""Commands from functions, with groups of options in their signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from .main import Command, described
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
    the function itself is called with the groups put together again. Every command also has
    --quiet and --verbose.
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
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=field_hints[field.name],
                )
            )

    for name, hint in (("quiet", QuietOption), ("verbose", VerboseOption)):
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=False, annotation=hint))

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


def _declared(hint: Any) -> Any:
    """A hint as it was written: Python 3.10 makes `Annotated[...] = None` optional once more."""
    inside = [part for part in get_args(hint) if get_origin(part) is Annotated]
    return inside[0] if get_origin(hint) is Union and inside else hint
