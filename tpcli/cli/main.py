"""The `tpcli` program: commands, exit codes, and nothing heavy at import."""

from __future__ import annotations

import io
import os
import signal
import sys
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any

import typer

from tpcli.cli.help import WIDEST
from tpcli.cli.render import quiet
from tpcli.cli.settings import take_settings
from tpcli.cli.text import visible, with_flags
from tpcli.cli.usage import usage
from tpcli.cli.voice import QuietOption, VerboseOption, speak
from tpcli.errors import TpcliError, UserError
from tpcli.processes import team
from tpcli.version import __version__

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
    if not team().is_first:  # one process reports
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
