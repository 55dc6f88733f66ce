"""How much is said on stderr: --quiet and --verbose, of every command."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated

from tpcli.system.ranks import team
from tpcli.system.text import visible

from .values import flag

if TYPE_CHECKING:
    from rich.console import Console

QuietOption = Annotated[bool, flag("Nothing on stderr but errors.", "--quiet", "-q")]
VerboseOption = Annotated[
    bool, flag("Say on stderr how things are done, and why.", "--verbose", "-v")
]


class Visible(logging.Formatter):
    """One line per record, without a character that a terminal would act upon."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send what the library logs to stderr, from the level that was asked for on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Visible("%(name)s: %(message)s"))
    logger = logging.getLogger("tpcli")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)


def is_quiet() -> bool:
    """Whether only errors are wanted, or another process reports."""
    return logging.getLogger("tpcli").level >= logging.ERROR or not team().is_first


def note(text: str) -> None:
    """A line on stderr, where notes are wanted."""
    if not is_quiet():
        sys.stderr.write(visible(text) + "\n")


def console() -> Console:
    """Where progress is shown."""
    from rich.console import Console

    return Console(stderr=True, quiet=is_quiet(), highlight=False, markup=False)
