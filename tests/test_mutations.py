"""The faults that the suite is tried with still fit the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_has_its_place_and_its_test(mutation: Mutation) -> None:
    assert (ROOT / "tpcli" / mutation.file).read_text().count(mutation.old) == 1
    file, _, name = mutation.tests.partition("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text()
