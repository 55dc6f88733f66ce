"""From a failure to one sentence on stderr and an exit code; streams that can't be used."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import Any

import typer

from tpcli.errors import TpcliError, UserError, did_you_mean
from tpcli.system.text import visible

from .settings import SOURCES

DEBUG = "--debug"
LONGEST_WORD, SHOWN = 200, 60
"""A longer run without a blank is shown by its first characters and its length."""
LONGEST = 700
"""Characters of a message."""

# typer carries a click of its own in some versions, and uses the installed one in others
USAGE_ERROR = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

FLAGS = {"file_format": "format", "compiled": "compile"}
"""Options whose name differs from the library's argument."""


def explain(error: Exception) -> int:
    """Print one sentence on stderr; returns the exit code."""
    code, words = sentence(error)
    print(f"error: {shortened(visible(words))}", file=sys.stderr)
    return code


def sentence(error: Exception) -> tuple[int, str]:
    """The exit code, and what went wrong: 2 and the wrong value, or 1 and the failure."""
    if isinstance(error, TpcliError):
        return error.exit_code, with_flags(str(error))
    if isinstance(error, USAGE_ERROR):
        return UserError.exit_code, usage(error)
    if isinstance(error, OSError) and error.strerror:
        place = "a file" if error.filename is None else error.filename
        return 1, (
            f"{place} can't be used: {error.strerror}; check the path, its permissions and the "
            f"space left (run again with {DEBUG} for the place in the code)."
        )
    if isinstance(error, MemoryError):
        return 1, "the memory of this machine is used up; try a smaller batch or fewer workers."
    kind, first = type(error).__name__, (str(error).splitlines() or [""])[0]
    return 1, f"{kind}: {first} (this is a bug; run again with {DEBUG} for the traceback)"


def usage(error: Any) -> str:
    """A mistake in the command line: what was typed, and what to type instead."""
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
            return f"{name} takes no value, but {typed[0]!r} was given; leave the value out."
        return f"{name} needs a value; give one, or leave the option out."
    message = error.format_message().removesuffix(".")
    if "such command" in message:
        name = message.split("'")[1]
        known = list(context.command.commands)
        near = did_you_mean(name, known)
        return f"command {name!r} is unknown; use one of {', '.join(known)}.{near}"
    return f"{message[:1].lower()}{message[1:]}; see {command} --help."


def _source(error: Any) -> str:
    """Where the wrong value was given: the option, or the file that sets it."""
    name, context = str(error.param.name), error.ctx
    source = context.get_parameter_source(name) if context else None
    if getattr(source, "name", "") == "DEFAULT_MAP":
        return f"{context.meta[SOURCES][name]}: {name.replace('_', '-')} "
    flags = [flag for flag in error.param.opts if flag.startswith("-")]
    return f"{flags[0]} " if flags else f"{name} "


def with_flags(message: str) -> str:
    """A message of the library with command-line options in place of arguments in backticks.

    `force` becomes --force, `batch_size=32` --batch-size 32, `pretrained=False` --no-pretrained.
    """
    return re.sub(r"`([a-z][a-z_]*)(?:=([^`=]+))?`", _flag, message)


def _flag(found: re.Match[str]) -> str:
    name, value = FLAGS.get(found[1], found[1]).replace("_", "-"), found[2]
    if value == "False":
        return f"--no-{name}"
    return f"--{name}" if value in (None, "True") else f"--{name} {value}"


def shortened(message: str) -> str:
    """A message that can be read: of very long values the beginning, with their length."""
    message = re.sub(
        rf"\S{{{LONGEST_WORD},}}", lambda m: f"{m[0][:SHOWN]}... ({len(m[0])} characters)", message
    )
    if len(message) <= LONGEST:
        return message
    return f"{message[:LONGEST].rsplit(' ', 1)[0]} ... ({len(message)} characters)."


STREAM_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EBADF, errno.EIO)


def prepare_streams() -> None:
    """Write out characters that the encoding lacks; send closed streams nowhere.

    A closed stream is None in Python, and the next file that is opened would take its number, so
    that a library's output to it would damage the file.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_WRONLY)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, "w"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stdout_failure(error: Exception) -> TpcliError | None:
    """The error in words if standard output can't be written, which is then given up."""
    if (
        not isinstance(error, OSError)
        or error.errno not in STREAM_FAILURES
        or error.filename is not None
    ):
        return None
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"\n")
    except (OSError, ValueError):
        give_up_stdout()
        return TpcliError(
            f"standard output can't be written: {os.strerror(error.errno)}; what the command saved "
            "to files is complete."
        )
    return None


def give_up_stdout() -> None:
    """Send what is left to print nowhere, so that the end of the process does not fail on it."""
    handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, sys.stdout.fileno())
    os.close(handle)
