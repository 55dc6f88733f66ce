"""Methods that weigh several criteria, or drop and merge: MCTF, DiffRate, ToFu, by plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.models import images, tiny_vit, tokens
from tpcli import pool
from tpcli.config.options import pooling_options
from tpcli.errors import UserError
from tpcli.pooling import get_method, merge_tokens

from . import reference
from .test_merging import groups

N = 24
EVERY_K = [23, 18, 12, 7, 2, 1]


@pytest.fixture
def z() -> Tensor:
    return tokens(3, N, 16)


@pytest.fixture
def attention() -> Tensor:
    return torch.rand(3, N) ** 4 + 1e-3


@pytest.fixture
def sizes() -> Tensor:
    return torch.randint(1, 9, (3, N)).float()


@pytest.mark.parametrize("taus", [(1 / 20, 1 / 40), (0.0, 0.0), (1.0, 2.0)])
@pytest.mark.parametrize("k", EVERY_K)
def test_mctf_merges_by_three_criteria(
    z: Tensor, attention: Tensor, sizes: Tensor, k: int, taus: tuple[float, float]
) -> None:
    method = get_method(f"mctf:information={taus[0]}:size={taus[1]}")
    labels, medoids, shares, _ = method.assign(z, k, weights=attention, sizes=sizes)
    assert medoids is None
    torch.testing.assert_close(shares, attention * sizes)
    for row, found in enumerate(groups(labels)):
        arrays = [t[row].double().numpy() for t in (z, attention, sizes)]
        assert found == reference.mctf(*arrays, k, *taus)


def test_mctf_keeps_apart_what_is_looked_at_and_what_is_large() -> None:
    """Of two equally similar pairs, the one with less attention, or of smaller tokens, merges."""
    z = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    ones, more = torch.ones(1, 4), torch.tensor([[2.0, 2.0, 1.0, 1.0]])
    mctf = get_method("mctf").assign
    assert groups(mctf(z, 3, weights=more, sizes=ones).labels) == [[[0], [1], [2, 3]]]
    assert groups(mctf(z, 3, weights=ones, sizes=more).labels) == [[[0], [1], [2, 3]]]
    assert groups(mctf(z, 3, weights=ones, sizes=ones).labels) == [[[0, 1], [2], [3]]]


@pytest.mark.parametrize("attention", [0.0, 1e-30, 1e30])
def test_attention_of_any_scale_drops_nothing(z: Tensor, attention: float) -> None:
    ones = torch.ones(3, N)
    labels, _, shares, _ = get_method("mctf").assign(z, 9, weights=attention * ones, sizes=ones)
    assert shares is not None
    assert (shares > 0).all()
    assert [len(row.unique()) for row in labels] == [9, 9, 9]


@pytest.mark.parametrize("dropped", [0, 0.37, 0.5, 1])
@pytest.mark.parametrize("k", EVERY_K)
def test_diffrate_drops_the_tail_and_merges_the_next(
    z: Tensor, attention: Tensor, sizes: Tensor, k: int, dropped: float
) -> None:
    method = get_method(f"diffrate:dropped={dropped}")
    labels, kept, shares, _ = method.assign(z, k, weights=attention)
    assert kept is not None
    assert shares is not None
    pooled, counted, _ = merge_tokens(z, labels, k, sizes * (shares > 0), shares, leads=kept)
    for row in range(3):
        x = z[row].double()
        expected, gone = reference.diffrate(x.numpy(), attention[row].numpy(), k, dropped)
        assert kept[row].nonzero().flatten().tolist() == list(expected)
        assert (shares[row] == 0).nonzero().flatten().tolist() == sorted(gone)
        order = sorted(expected, key=lambda i: labels[row].tolist().index(labels[row, i]))
        means = torch.stack([x[expected[i]].mean(0) for i in order]).float()
        torch.testing.assert_close(pooled[row], means)
        totals = torch.stack([sizes[row, expected[i]].sum() for i in order])
        assert torch.equal(counted[row], totals)


def test_diffrate_that_only_drops_is_top_k() -> None:
    x = images()
    with torch.no_grad():
        drops = pool(tiny_vit(), "r:8", "diffrate:dropped=1")(x)
        top = pool(tiny_vit(), "r:8", "top-k", proportional_attention=True)(x)
    assert torch.equal(drops, top)


@pytest.mark.parametrize("k", EVERY_K)
def test_tofu_drops_one_of_a_pair_in_the_first_half(z: Tensor, sizes: Tensor, k: int) -> None:
    for depth in (0.0, 5 / 12):
        _, kept, shares, _ = get_method("tofu").assign(z, k, sizes=sizes, depth=depth)
        assert kept is not None
        assert torch.equal(shares, kept.float())
        for row in range(3):
            expected = reference.tofu_drops(z[row].double().numpy(), k)
            assert kept[row].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("k", EVERY_K)
def test_tofu_merges_to_the_largest_norm_in_the_second_half(
    z: Tensor, sizes: Tensor, k: int
) -> None:
    assert pooling_options("tofu").reduce == "max-norm"
    labels, medoids, shares, _ = get_method("tofu").assign(z, k, sizes=sizes, depth=0.5)
    assert (medoids, shares) == (None, None)
    pooled = merge_tokens(z, labels, k, sizes, sizes, keep_longest=True).tokens
    for row in range(3):
        arrays = z[row].double().numpy(), sizes[row].double().numpy()
        means = [reference.mlerp(*arrays, g) for g in sorted(reference.tome(*arrays, k))]
        torch.testing.assert_close(pooled[row], torch.from_numpy(np.array(means)).float())


@pytest.mark.parametrize(
    ("tokens", "counted"), [("56,48,40,1", [56, 48, 48, 48]), ("1,1,1,1", [1, 1, 1, 1])]
)
def test_tofu_in_a_model_drops_then_merges(tokens: str, counted: list[int]) -> None:
    model = pool(tiny_vit(), f"tokens:{tokens}", "tofu")
    seen: list[Tensor] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.token_pooling.register_forward_hook(lambda m, a, out: seen.append(out[1]))
    with torch.no_grad():
        model(images())
    assert [int(sizes[0].sum()) for sizes in seen] == counted


def test_options_that_would_change_the_method_are_refused() -> None:
    for method, given in (
        ("tofu", {"reduce": "mean"}),
        ("mctf", {"weights": "uniform"}),
        ("mctf", {"reduce": "norm"}),
        ("diffrate", {"weights": "size"}),
        ("diffrate:dropped=1.1", {}),
    ):
        with pytest.raises(UserError, match=r"leave it out|can't"):
            pooling_options(method, **given)
