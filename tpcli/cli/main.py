"""The `tpcli` program: commands, exit codes, and nothing heavy at import."""

from __future__ import annotations

import os
import signal
import sys
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Any

import typer

from tpcli.errors import UserError
from tpcli.system.ranks import team
from tpcli.version import __version__

from .errors import DEBUG, explain, prepare_streams, stdout_failure
from .option_groups import WIDEST, add
from .render import quiet
from .settings import take_settings
from .verbosity import QuietOption, VerboseOption, speak

FIRST_STEPS = """\
tpcli makes pretrained timm Vision Transformers faster by token pooling, and
measures what that costs in accuracy, FLOPs and time.

Start with one of these; each runs on a built-in model and data:
  tpcli pareto      compare methods: accuracy against FLOPs, as a figure and a page
  tpcli optimize    find and save the fastest model that loses 0.5 points at most
  tpcli bench       time the pooled model on this machine

With your own: tpcli optimize deit_small_patch16_224 --data imagenet/
All commands:  tpcli --help"""

COMPLETING = {"_tpcli_COMPLETE", "_TPCLI_COMPLETE"}
"""Set by a shell that asks for completions; click's spelling changed in 8.5."""

SHARED = ("eval", "finetune", "pareto", "schedule")
"""Commands whose work several processes share; of the others the first process does it."""

COMMANDS = (
    *("optimize", "apply", "eval", "flops", "finetune", "schedule", "pareto", "bench", "export"),
    *("show", "analyze", "models", "methods", "env"),
)
"""Each is the function of that name in the module of that name."""
INTERRUPTED = 130

app = typer.Typer(
    name="tpcli",
    help="Make pretrained timm Vision Transformers faster by token pooling, and measure what that "
    "costs in accuracy, FLOPs and time.\n\nEvery command runs without arguments, on a built-in "
    "model and data.",
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
    add(app, _name, getattr(import_module(f"tpcli.cli.{_name}"), _name))


@cache
def program() -> Any:
    """The commands and their options, read from the signatures once."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the program and exit: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    arguments = [a for a in sys.argv[1:] if a != DEBUG]
    debug = len(arguments) < len(sys.argv) - 1
    prepare_streams()
    by = ""

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal by
        by = f" by {signal.Signals(number).name}"
        raise KeyboardInterrupt

    # a notebook's, which matplotlib refuses on import where the module is missing; none is used
    os.environ.pop("MPLBACKEND", None)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        failure = stdout_failure(error)
        if debug and failure is None:
            raise
        sys.exit(explain(failure or error))
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == INTERRUPTED:
        print(f"interrupted{by}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _run(arguments: list[str]) -> Any:
    """Do what the command line says; the exit code, where it is not 0."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder is gone; change to one that exists.") from None
    if not arguments and not COMPLETING & os.environ.keys():
        print(FIRST_STEPS)
        return 0
    if not team().is_first:  # one process reports
        if next((a for a in arguments if not a.startswith("-")), "") not in SHARED:
            return 0
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # until the process ends
    return program()(args=arguments, prog_name="tpcli", standalone_mode=False)
