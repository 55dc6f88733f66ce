"""The `tpcli` program: commands, exit codes, and nothing heavy at import."""

from __future__ import annotations

import inspect
import io
import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any

import typer
from typer.core import TyperCommand

from tpcli.errors import TpcliError, UserError, did_you_mean
from tpcli.system.ranks import team
from tpcli.system.text import visible
from tpcli.version import __version__

from .render import quiet
from .settings import SOURCES, take_settings
from .verbosity import QuietOption, VerboseOption, speak

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


SHARED = ("eval", "finetune", "pareto", "schedule")
"""Commands whose work several processes share; of the others the first process does it."""

COMMANDS = (
    "optimize",
    "apply",
    "eval",
    "flops",
    "finetune",
    "schedule",
    "pareto",
    "bench",
    "export",
    "show",
    "analyze",
    "models",
    "methods",
    "env",
)
DEBUG = "--debug"
INTERRUPTED = 130
# typer carries a click of its own in some versions, and uses the installed one in others
USAGE_ERROR = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="tpcli",
    help="Prune pretrained timm Vision Transformers by Token Pooling, and tell the truth about "
    "what it costs.\n\nEvery command runs bare, on a built-in model and data: "
    "tpcli pareto --out plot.png.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)


def _print_version(value: bool) -> None:
    if value:
        print(f"tpcli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Show the version and stop.",
    ),
    debug: bool = typer.Option(False, DEBUG, help="Show a traceback on errors (any position)."),
    silent: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Options before the command."""
    quiet()  # before any library is imported, since some warn of themselves then
    speak(quiet=silent, verbose=verbose)
    take_settings(context)


for _name in COMMANDS:
    import_module(f"tpcli.cli.{_name}").register(app)


@cache
def program() -> Any:
    """The commands and their options, read from the signatures once."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the program and exit: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    arguments = [a for a in sys.argv[1:] if a != DEBUG]
    try:
        is_first = team().is_first
        os.getcwd()
    except FileNotFoundError:
        sys.exit(_explain(UserError("the current folder is gone; change to one that is there.")))
    except UserError as error:
        sys.exit(_explain(error))
    if not is_first:  # one process reports
        if next((a for a in arguments if not a.startswith("-")), "") not in SHARED:
            sys.exit(0)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    debug = len(arguments) < len(sys.argv) - 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    by = ""

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal by
        by = f" by {signal.Signals(number).name}"
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        code = program()(args=arguments, prog_name="tpcli", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        sys.exit(_explain(error))
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == INTERRUPTED:
        print(f"interrupted{by}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print one sentence on stderr; the exit code."""
    code = 1
    if isinstance(error, TpcliError):
        code, words = error.exit_code, with_flags(str(error))
    elif isinstance(error, USAGE_ERROR):
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return UserError.exit_code
        code, words = UserError.exit_code, usage(error)
    else:
        kind, first = type(error).__name__, (str(error).splitlines() or [""])[0]
        words = f"{kind}: {first} (this is a bug; run again with {DEBUG} for where)"
    print(f"error: {visible(words)}", file=sys.stderr)
    return code


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
