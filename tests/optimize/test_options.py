"""What may be aimed at."""

from __future__ import annotations

import pytest

from tpcli.errors import UserError
from tpcli.optimize.options import Aims


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there is no aim"),
        ({"max_drop": 1, "speedup": 2, "budget": 0.5}, "can't all be held"),
        ({"max_drop": -0.1}, "max_drop -0.1 is out of range"),
        ({"max_drop": float("nan")}, "max_drop nan is out of range"),
        ({"speedup": 0.9}, "speedup 0.9 is out of range"),
        ({"speedup": float("inf")}, "speedup inf is out of range"),
        ({"budget": 0}, "budget 0 leaves nothing"),
        ({"budget": 1.5}, "budget 1.5 is out of range"),
        ({"speedup": 1.5, "budget": 1}, "speedup 1.5 can't be had"),
        ({"max_drop": 1, "risk": "none"}, "risk 'none' is unknown; use upper or mean"),
    ],
)
def test_what_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Aims(**values)  # type: ignore[arg-type]


def test_words_name_all_aims() -> None:
    assert Aims(0.5, 1.5).words == "at least 1.5x as fast, at most 0.5 points lost"
    assert Aims(budget=0.6).words == "at most 60% of the FLOPs"
