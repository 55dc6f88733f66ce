"""What the compiled loops are not made for is an error, or left to torch's operators."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from tests.helpers.models import tokens
from tpcli.pooling import get_method, merge_tokens
from tpcli.pooling.backends import c as c_kernels

pytestmark = pytest.mark.skipif(c_kernels.kernels is None, reason="the kernels were not compiled")

SHORT = {"weights": (1, 9), "one weight": (1, 1), "weights of more": (2, 10), "a vector": (9,)}


@pytest.mark.parametrize("shape", SHORT.values(), ids=SHORT)
def test_weights_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    z, ones = torch.randn(2, 9, 4), torch.ones(shape)
    with pytest.raises(ValueError, match=r"weights has the shape .*; \(2, 9\) is needed"):
        get_method("ward")(z, 5, weights=ones, iterations=0)
    labels = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7, 8]).repeat(2, 1)
    for counted, shares in ((ones, torch.ones(2, 9)), (torch.ones(2, 9), ones)):
        with pytest.raises(ValueError, match=r"has the shape .*; \(2, 9\) is needed"):
            merge_tokens(z, labels, 8, counted, shares)


@pytest.mark.parametrize(
    ("candidates", "merges"), [(9, [5000]), (9, [4, 3]), (9, [0]), (9, [-1]), (-3, []), (10, [1])]
)
def test_more_merges_than_tokens_are_an_error(candidates: int, merges: list[int]) -> None:
    z, ones = torch.randn(2, 9, 4), torch.ones(2, 9)
    with pytest.raises(ValueError, match="can't be"):
        c_kernels.ward_labels(z, ones, candidates, merges, False)


@pytest.mark.parametrize(
    ("x", "labels", "k", "prefix"),
    [
        ((2, 8, 3), (2, 9), 9, 0),
        ((2, 9, 3), (2, 9), 9, 1),
        ((1, 9, 3), (2, 9), 9, 0),
        ((2, 9, 3), (2, 9), 0, 0),
        ((2, 9, 3), (2, 9), -5, 0),
        ((2, 9, 3), (2, 9), 10, 0),
        ((2, 7, 3), (2, 9), 9, -2),
        ((2, 9), (2, 9), 9, 0),
        ((2, 9, 3), (9,), 9, 0),
    ],
)
def test_tokens_that_labels_do_not_fit_are_an_error(
    x: tuple[int, ...], labels: tuple[int, ...], k: int, prefix: int
) -> None:
    named, ones = torch.arange(9).expand(labels), torch.ones(labels)
    with pytest.raises(ValueError, match=r"needed|can't become"):
        merge_tokens(torch.randn(x), named, k, ones, ones, prefix=prefix)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_positive_are_left_to_torch(bad: float) -> None:
    z, weights = tokens(2, 12, 4), torch.ones(2, 12)
    weights[1, 7] = bad
    assert c_kernels.ward_labels(z, weights, 12, [3], False) is None


def test_memory_that_is_not_as_it_looks_is_left_to_torch() -> None:
    """Conjugated, zero and sparse tensors; and what has a tangent."""
    z, ones = tokens(2, 8, 4), torch.ones(2, 8)
    labels = torch.tensor([[0, 0, 2, 3, 4, 5, 6, 7]] * 2)
    negative = torch.complex(z, -z).conj().imag
    assert negative.is_neg()
    assert torch.equal(negative, z)
    for other in (negative, torch._efficientzerotensor(2, 8, 4), z.to_sparse(), z.to("meta")):
        assert c_kernels.ward_labels(other, ones, 8, [1], False) is None
        assert c_kernels.merge_tokens(other, labels, 7, ones, ones, 0, False, False) is None
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z))
        merged = merge_tokens(dual, labels, 7, ones, ones).tokens
        assert forward_ad.unpack_dual(merged).tangent is not None


def test_repeated_rows_are_read_as_they_are() -> None:
    one = tokens(1, 20, 6)
    weights = torch.rand(20) + 0.5
    z, repeated = one.expand(3, -1, -1), weights.expand(3, -1)
    assert z.stride(0) == 0
    expected = get_method("ward")(one, 12, weights=weights[None], iterations=0).labels
    labels = get_method("ward")(z, 12, weights=repeated, iterations=0).labels
    assert torch.equal(labels, expected.expand(3, -1))
    merged = merge_tokens(z, labels, 12, repeated, repeated).tokens
    assert torch.equal(
        merged, merge_tokens(one, expected, 12, repeated[:1], repeated[:1])[0].expand(3, -1, -1)
    )


def test_the_default_device_is_not_theirs() -> None:
    x, ones = tokens(2, 12, 4), torch.ones(2, 12)
    torch.set_default_device("meta")
    try:
        labels = get_method("ward")(x, 8, weights=ones, iterations=0).labels
        merged = merge_tokens(x, labels, 8, ones, ones).tokens
    finally:
        torch.set_default_device(None)
    assert merged.device.type == labels.device.type == "cpu"
