"""Which cases of a test run by default: one of each kind; the walk has the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_of(chosen: Collection[str], every: Iterable[str]) -> list[Any]:
    """All cases; those that are not chosen are marked as part of the walk."""
    return [
        case if case in chosen else pytest.param(case, marks=pytest.mark.walk) for case in every
    ]
