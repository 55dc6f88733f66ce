"""What may be aimed at."""

from __future__ import annotations

import pytest

from tpcli.errors import UserError
from tpcli.optimize.options import Targets


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "max_drop"),
        ({"max_drop": 1, "speedup": 2, "budget": 0.5}, "speedup"),
        ({"max_drop": -0.1}, "-0.1"),
        ({"max_drop": float("nan")}, "nan"),
        ({"speedup": 0.9}, "0.9"),
        ({"speedup": float("inf")}, "inf"),
        ({"budget": 0}, "budget 0"),
        ({"budget": 1.5}, "1.5"),
        ({"speedup": 1.5, "budget": 1}, "speedup 1.5"),
        ({"max_drop": 1, "risk": "none"}, "none"),
    ],
)
def test_what_is_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Targets(**values)  # type: ignore[arg-type]


def test_words_name_all_aims() -> None:
    assert Targets(0.5, 1.5).words == "at least 1.5x as fast, at most 0.5 points lost"
    assert Targets(budget=0.6).words == "at most 60% of the FLOPs"
