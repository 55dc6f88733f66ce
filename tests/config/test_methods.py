"""What is said of methods without torch, held against the operators there are."""

from __future__ import annotations

import pytest

from tpcli import pooling
from tpcli.config.methods import METHODS, OPTIONS, describe
from tpcli.errors import UserError
from tpcli.pooling.registry import KEYWORDS


def test_every_description_has_its_operator() -> None:
    assert [method.name for method in pooling.methods()] == list(METHODS)
    for name, described in METHODS.items():
        method = pooling.get_method(name)
        assert (method.name, method.takes, method.parameters) == (
            described.name, described.takes, described.parameters
        )  # fmt: skip
        assert set(described.takes) <= set(OPTIONS)
        handed = set(OPTIONS) & set(KEYWORDS)
        assert handed & set(described.takes) == handed & set(method.keywords)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("kmeans", "method 'kmeans' is unknown; .* Did you mean k-means"),
        ("", "method '' is unknown"),
        ("ward:", "'' is no parameter of method ward; it has none"),
        ("atc:linkage=ward", "use one of average, complete, single"),
        ("atc:linkage=single:linkage=single", "gives linkage twice"),
        ("dpc-knn:neighbours=0", "of 1 or more"),
        ("dpc-knn:neighbours=1_0", "whole number"),
        ("dpc-knn:neighbours=2.0", "whole number"),
        ("random:seed=10000000000000000000000", "whole number of 0 to"),
        ("pitome:margin=nan", "number of 0 to"),
        ("pitome:margin=inf", "number of 0 to"),
    ],
)
def test_what_is_no_method_is_refused(spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        describe(spec)


def test_parameters_are_read() -> None:
    assert describe("pitome:margin=0.5:alpha=2")[1] == {"margin": 0.5, "alpha": 2.0}
    assert describe("random:seed=7")[1] == {"seed": 7}
