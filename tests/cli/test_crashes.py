"""A command that was ended before any of its file operations is taken up by the same command."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.helpers.crashes import COMMANDS, campaign
from tests.helpers.selection import some_of

Choice = Callable[[int], Iterable[int]]


@pytest.mark.parametrize("name", some_of([], COMMANDS))
def test_a_crash(name: str, tmp_path: Path) -> None:
    chosen: Choice = lambda n: [random.Random(name).randrange(n)]  # noqa: E731
    assert campaign(name, tmp_path, chosen).lost == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_crash(name: str, tmp_path: Path) -> None:
    tally = campaign(name, tmp_path, range)
    assert tally.tried == tally.operations
    assert tally.lost == []
