"""Which cases of a test run by default: one of each kind; `make test-long` has the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_of(chosen: Collection[str], every: Iterable[str]) -> list[Any]:
    """All cases; those that are not chosen are marked `long`."""
    return [
        case if case in chosen else pytest.param(case, marks=pytest.mark.long) for case in every
    ]
