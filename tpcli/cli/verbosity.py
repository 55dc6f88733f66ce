"""--quiet and --verbose of every command: what is logged on stderr."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

from tpcli.system.ranks import team
from tpcli.system.text import visible

from .values import flag

if TYPE_CHECKING:
    from rich.console import Console

QuietOption = Annotated[bool, flag("Print nothing on stderr but errors.", "--quiet", "-q")]
VerboseOption = Annotated[bool, flag("Log more on stderr.", "--verbose", "-v")]


class Visible(logging.Formatter):
    """One line per record, with control characters written out."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """Log the library's messages on stderr, from the chosen level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Visible("%(name)s: %(message)s"))
    logger = logging.getLogger("tpcli")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)


def is_quiet() -> bool:
    """Whether only errors are printed, or another process reports."""
    return logging.getLogger("tpcli").level >= logging.ERROR or not team().is_first


def note(text: str) -> None:
    """A line on stderr, unless --quiet."""
    if not is_quiet():
        sys.stderr.write(visible(text) + "\n")


def console() -> Console:
    """The console that shows progress."""
    from rich.console import Console

    return Console(stderr=True, quiet=is_quiet(), highlight=False, markup=False)
