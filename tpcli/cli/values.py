"""What options accept: read from text, refused in one sentence, completed by the shell."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from tpcli.config import specs
from tpcli.config.choices import DEVICES, FIGURE_SUFFIXES, listed
from tpcli.config.methods import METHODS, describe
from tpcli.config.schedule import check_form, parse_budget
from tpcli.config.specs import SPLITS, expanded
from tpcli.errors import did_you_mean, quoted

NUMBERS = ("N", "X")
"""What stands for numbers in the help."""
MANY = 10**6
"""More than anyone means of what is counted in ones; below what overflows or fills a memory."""


@dataclass(frozen=True)
class Value:
    """A kind of value.

    read: from text to the value; raises ValueError with what is wrong and what to do, or an error
    that is a sentence by itself. metavar: what stands for it in the help. names: what the shell
    offers, asked for only then.
    """

    read: Callable[[str], Any]
    metavar: str = "TEXT"
    names: Callable[[], Iterable[str]] = tuple

    def parse(self, given: Any) -> Any:
        """What `given` (text, or a value of a TOML file) stands for."""
        text = given if isinstance(given, str) else str(given)
        try:
            return self.read(text)
        except ValueError as wrong:
            raise typer.BadParameter(f"{quoted(text)} {wrong}") from None

    def complete(self, incomplete: str) -> list[str]:
        """Names that begin with `incomplete`."""
        return [name for name in self.names() if name.startswith(incomplete)]


def argument(value: Value, text: str) -> Any:
    """A typer argument of that kind."""
    return typer.Argument(
        help=text, metavar=value.metavar, parser=value.parse, autocompletion=value.complete
    )


def option(
    value: Value,
    text: str,
    *flags: str,
    panel: str | None = None,
    shown: str | None = None,
    **more: Any,
) -> Any:
    """A typer option of that kind. shown: what the help calls the default, where it is None."""
    return typer.Option(
        *flags,
        help=text,
        parser=value.parse,
        metavar=value.metavar,
        autocompletion=value.complete,
        rich_help_panel=panel,
        show_default=True if shown is None else shown,
        **more,
    )


def typed(name: str, value: Any) -> list[str]:
    """The words that give an option this value; a list is an option that is repeated."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    items = value if isinstance(value, list) else [value]
    return [word for item in items for word in (f"--{flag}", str(item))]


def flag(text: str, *flags: str, panel: str | None = None) -> Any:
    """A typer option that is there or not."""
    return typer.Option(*flags, help=text, rich_help_panel=panel)


def one_of(names: Sequence[str]) -> Value:
    """One of a few words."""

    def read(text: str) -> str:
        if text not in names:
            near = did_you_mean(text, names)
            raise ValueError(f"is unknown; use {listed(names)}.{near}")
        return text

    return Value(read, "NAME", lambda: names)


def choice(names: Sequence[str], text: str, *flags: str, end: str = ".", **more: Any) -> Any:
    """A typer option of one of a few words, which its help lists between `text` and `end`."""
    return option(one_of(names), f"{text}: {', '.join(names)}{end}", *flags, **more)


def some_of(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads some of a few words, with commas between, each once."""
    one = one_of(names)

    def read(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.read(item.strip(" ")) for item in text.split(",")))

    return read


def whole(low: int, high: int = MANY) -> Value:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
            kind = "is too large" if re.fullmatch(r"\+?\d+", text) else "is no whole number"
            raise ValueError(f"{kind}; give one from {low} to {high}.")
        if not low <= int(text) <= high:
            raise ValueError(f"is out of range; give a whole number from {low} to {high}.")
        return int(text)

    return Value(read, "N")


def number(low: float, high: float, metavar: str = "X") -> Value:
    """A number from `low` to `high`."""

    def read(text: str) -> float:
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
            raise ValueError(f"is no number; give one from {low:g} to {high:g}.")
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"is out of range; give a number from {low:g} to {high:g}.")
        return value

    return Value(read, metavar)


def checked(check: Callable[[str], object], metavar: str, names: Any = tuple) -> Value:
    """Text that `check` has nothing against; a path at its beginning may start with ~."""

    def read(text: str) -> str:
        text = expanded(text)
        check(text)
        return text

    return Value(read, metavar, names)


def words(text: str) -> str:
    """Text that is not empty and has no character that no name has."""
    if not text.strip():
        raise ValueError("is empty; give a value, or leave the option out.")
    if "\0" in text:
        raise ValueError("holds a zero byte, which no name has; leave it out.")
    return text


def place(text: str) -> Path:
    """A path that the system takes, whether something is there or not."""
    text = expanded(words(text))
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(f"can't be a path here ({error.strerror}); choose another.") from None
    return Path(text)


def file(text: str) -> Path:
    """A regular file that is there and can be read."""
    path = place(text)
    if not path.exists():
        raise ValueError("does not exist; check the path.")
    if not path.is_file():
        raise ValueError("is no file; give one.")
    if not os.access(path, os.R_OK):
        raise ValueError("can't be read; check its permissions.")
    return path


def named_like(suffixes: Sequence[str]) -> Callable[[str], Path]:
    """Reads a path that ends in one of `suffixes`."""

    def read(text: str) -> Path:
        path = place(text)
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"has no known suffix; use one of {', '.join(suffixes)}.")
        return path

    return read


TEXT = Value(words)
PLACE = Value(place, "PATH")
FOLDER = Value(place, "FOLDER")
FILE = Value(file, "FILE")
FIGURE = Value(named_like(FIGURE_SUFFIXES), "FILE")


def _model_names() -> list[str]:
    from tpcli.models.catalog import architectures

    return [specs.DEMO, *(architecture.name for architecture in architectures())]


def _device(text: str) -> str:
    kind, colon, index = text.partition(":")
    has_index = kind in ("cuda", "xpu") and index.isdecimal() and index.isascii()
    if kind not in DEVICES or (colon and not has_index):
        raise ValueError(
            f"is unknown; use one of {', '.join(DEVICES)}, or one of several like cuda:1."
        )
    return text


def budgets(text: str) -> list[float]:
    """Shares of the FLOPs with commas between them, each once."""
    return list(dict.fromkeys(parse_budget(item) for item in text.split(",")))


def blocks(text: str) -> list[int]:
    """Numbers of blocks with commas between, each once, rising."""
    try:
        return sorted({whole(0, 10**4).read(item.strip(" ")) for item in text.split(",")})
    except ValueError:
        raise ValueError("has no numbers of blocks; give some with commas, like 3,6,9.") from None


def _methods(text: str) -> str:
    names = [name.strip(" ") for name in text.split(",")]
    if "" in names:
        raise ValueError(
            f"has an empty name; give one of {', '.join(METHODS)}, or several with one comma "
            "between them."
        )
    for name in names:
        describe(name)
    return text


MODEL = checked(specs.check_model, "MODEL", _model_names)
MODEL_ARGUMENT = checked(lambda text: specs.parse_model_kwargs([text]), "NAME=VALUE")
METHOD = checked(describe, "METHOD", lambda: METHODS)
SOME_METHODS = Value(_methods, "METHOD", lambda: METHODS)
SCHEDULE = checked(check_form, "SCHEDULE", lambda: ("flops:", "r:", "keep:", "tokens:", "none"))
DATA = checked(specs.check_data, "DATA", lambda: (specs.DEMO, *(f"{n}/" for n in specs.NAMED)))
BLOCKS = checked(blocks, "BLOCKS")
BUDGETS = checked(budgets, "SHARES")
BUDGET = Value(parse_budget, "SHARE")
SPLIT = Value(TEXT.read, "SPLIT", lambda: SPLITS)
DEVICE = Value(_device, "DEVICE", lambda: DEVICES)
SIZE = whole(1, 2**16)
"""Images in a batch, processes, and the like."""
