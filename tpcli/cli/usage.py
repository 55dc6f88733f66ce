"""What typer says of a wrong command line, in one sentence of our own."""

from __future__ import annotations

import sys
from typing import Any

from tpcli.cli.settings import SOURCES
from tpcli.errors import did_you_mean


def usage(error: Any) -> str:
    """One sentence that names what was typed, and what to type instead."""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context else "tpcli"
    kind = type(error).__name__
    if kind == "BadParameter" and error.param is not None:
        return f"{_source(error)}{error.message}"
    if kind == "NoSuchOption":
        known = [name for p in context.command.params for name in (*p.opts, *p.secondary_opts)]
        near = did_you_mean(error.option_name, known)
        return f"{command} has no option {error.option_name}; see {command} --help.{near}"
    if kind == "BadOptionUsage":
        name = error.option_name
        typed = [a.partition("=")[2] for a in sys.argv if a.startswith(f"{name}=")]
        if typed:
            return f"{name} takes no value, and {typed[0]!r} was given; leave that out."
        return f"{name} needs a value; give one, or leave the option out."
    message = error.format_message().removesuffix(".")
    if "such command" in message:
        name = message.split("'")[1]
        known = list(context.command.commands)
        near = did_you_mean(name, known)
        return f"command {name!r} is unknown; use one of {', '.join(known)}.{near}"
    return f"{message[:1].lower()}{message[1:]}; see {command} --help."


def _source(error: Any) -> str:
    """Where the wrong value was given: the option, or the file that has it."""
    name, context = str(error.param.name), error.ctx
    source = context.get_parameter_source(name) if context else None
    if getattr(source, "name", "") == "DEFAULT_MAP":
        return f"{context.meta[SOURCES][name]}: {name.replace('_', '-')} "
    flags = [flag for flag in error.param.opts if flag.startswith("-")]
    return f"{flags[0]} " if flags else f"{name} "
