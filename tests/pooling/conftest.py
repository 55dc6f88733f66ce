"""Operators on the CPU have two forms: compiled loops, and torch's operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tpcli.pooling.backends import c as c_kernels


@pytest.fixture(scope="module", params=["kernels", "operators"])
def either_form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a module's tests in both forms."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "operators":
            patch.setattr(c_kernels, "kernels", None)
        elif c_kernels.kernels is None:
            pytest.skip("the kernels were not compiled")
        yield
