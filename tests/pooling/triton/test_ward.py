"""Ward's clustering in Triton's kernels against torch's operators and plain loops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import pooling_reference as reference
from tests.helpers.models import tokens
from tests.pooling.test_ties import KEEP, TOKENS
from tpcli.pooling import Clusters, get_method
from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.backends import triton
from tpcli.pooling.clusters import number_by_operators
from tpcli.pooling.ward import candidate_count, merges_per_round, sketch_saves, ward_by_operators

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
F32, BF16, F16 = DTYPES


def slowly(values: Iterable[int]) -> list[Any]:
    """Values whose tests are for those who have the time: seconds each in the interpreter."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


SMALL = [
    (2, 1, 3, 0, F32, False),
    (3, 2, 5, 0, BF16, True),
    (17, 16, 3, 0, F16, False),
    (33, 31, 70, 0, F32, True),
    (66, 64, 20, 0, BF16, True),
    (20, 14, 10, 2, F32, False),
    (18, 13, 24, 2, F16, True),
    (1030, 1021, 20, 0, F32, False),
]
"""N, K, C, rounds, type, normalized."""

LARGE = [
    (40, 1, 6, 0),
    (70, 50, 33, 3),
    (196, 183, 384, 0),  # one round, a sketch
    (128, 112, 384, 4),  # rounds after a sketch
    (196, 120, 384, 0),
    (257, 200, 100, 0),
    (576, 540, 768, 0),
    (1024, 980, 1024, 0),
    (1024, 700, 64, 0),
    (1369, 1278, 768, 0),  # DINOv2 at its own 518 pixels
    (4096, 4000, 48, 2),
]


def partitions(labels: Tensor) -> list[object]:
    return [reference.partition(row.numpy()) for row in labels.cpu()]


def check(
    device: str,
    n: int,
    k: int,
    channels: int,
    rounds: int,
    dtype: torch.dtype,
    normalized: bool,
    candidates: int | None = None,
) -> None:
    """The same clusters, numbered as `Clusters.from_labels` does it."""
    z = tokens(2, n, channels, groups=max(n // 3, 2)).to(device, dtype)
    weights = (torch.rand(2, n, generator=torch.Generator().manual_seed(1)) + 0.5).to(device)
    plan = merges_per_round(n, k, rounds)
    if candidates is None:
        candidates = candidate_count(n, k) if sketch_saves(n, k, channels) else n
    found = triton.ward_labels(z, weights, candidates, plan, normalized)
    assert found is not None
    labels, numbered = found
    expected = ward_by_operators(z.double(), weights.double(), candidates, plan, normalized)
    assert partitions(labels) == partitions(expected)
    assert torch.equal(labels, Clusters(*numbered).labels())
    for part, other in zip(numbered, number_by_operators(expected.cpu(), k), strict=True):
        assert torch.equal(part.cpu(), other)


@pytest.mark.parametrize(("n", "k", "channels", "rounds", "dtype", "normalized"), SMALL)
def test_the_same_clusters(
    device: str, n: int, k: int, channels: int, rounds: int, dtype: torch.dtype, normalized: bool
) -> None:
    check(device, n, k, channels, rounds, dtype, normalized)


@pytest.mark.parametrize(("rounds", "dtype"), [(1, F32), (2, BF16)])
def test_the_same_clusters_among_those_that_a_sketch_finds(
    device: str, rounds: int, dtype: torch.dtype
) -> None:
    check(device, 24, 20, 50, rounds, dtype, True, candidates=15)


@pytest.mark.long
@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("n", "k", "channels", "rounds"), LARGE)
def test_the_same_clusters_of_many(
    device: str, dtype: torch.dtype, n: int, k: int, channels: int, rounds: int, normalized: bool
) -> None:
    check(device, n, k, channels, rounds, dtype, normalized)


@pytest.mark.long
@pytest.mark.parametrize("seed", [*range(3), *slowly(range(3, 40))])
def test_the_same_clusters_whatever_the_numbers(device: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 80))
    k, channels = int(draw.integers(1, n)), int(draw.integers(3, 90))
    check(device, n, k, channels, int(draw.integers(0, 4)), DTYPES[seed % 3], seed % 2 == 0)


def check_ties(device: str, z: Tensor, k: int, rounds: int) -> None:
    ones = torch.ones(z.shape[:2], device=device)
    labels = get_method("ward")(z.to(device), k, weights=ones, iterations=rounds).labels
    for row, tokens_of in zip(labels, z, strict=True):
        expected = reference.ward(tokens_of.double().numpy(), k, np.ones(len(row)), rounds)
        assert partitions(row[None]) == [reference.partition(np.array(expected))]


@pytest.mark.parametrize(("kind", "dtype"), [*zip(TOKENS, [BF16, F32, BF16, F16], strict=True)])
def test_ties_as_plain_loops_decide_them(device: str, kind: str, dtype: torch.dtype) -> None:
    check_ties(device, TOKENS[kind].to(dtype), 30, 1)


@pytest.mark.long
@pytest.mark.slow
@every_dtype
@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_ties_as_plain_loops_decide_them_in_rounds(
    device: str, kind: str, rounds: int, dtype: torch.dtype
) -> None:
    for k in KEEP:
        check_ties(device, TOKENS[kind].to(dtype), k, rounds)


def test_pairs_at_the_end_of_the_sketchs_list_are_cut_in_order(device: str) -> None:
    """Ten pairs at one distance, of which the first seven tokens take part, and two pairs merge."""
    pairs = torch.randint(-9, 9, (1, 10, 96)).float().repeat_interleave(2, 1)
    z = (pairs + torch.tensor([0.0, 1.0]).repeat(10).unsqueeze(1)).to(device)
    found = triton.ward_labels(z, torch.ones(1, 20, device=device), 7, [2], False)
    assert found is not None
    assert found[0][0].tolist() == [0, 0, 1, 1, *range(2, 18)]


@pytest.mark.parametrize(("bad", "dtype"), [(float("nan"), F32), (float("inf"), BF16)])
def test_tokens_that_are_not_finite_still_make_k_clusters(
    device: str, bad: float, dtype: torch.dtype
) -> None:
    z = tokens(2, 30, 6)
    z[0, 3] = bad
    z[1] = bad
    z = z.to(device, dtype)
    labels = get_method("ward")(z, 25, weights=torch.ones(2, 30, device=device), iterations=0)
    assert [len(row.unique()) for row in labels.labels] == [25, 25]


@every_dtype
def test_a_pair_has_one_price_from_both_sides_to_the_bit(device: str, dtype: torch.dtype) -> None:
    """Tokens that point at each other; whole numbers, so that sums of products are exact."""
    from tpcli.pooling.backends.triton import launch

    n, channels = 96, 40
    groups = torch.randint(-9, 10, (2, n // 3, channels)).repeat_interleave(3, 1)
    z = (groups + torch.randint(-2, 3, (2, n, channels))).to(device, dtype)
    weights = (torch.rand(2, n) + 0.5).to(device)
    shape = (2, n, channels, *z.stride()[:2])
    precision = None if dtype == F32 else "tf32x3"
    recipe = launch.ward_recipe(*shape, n, (4,), dtype != F32, dtype, precision)
    work = torch.empty(recipe.bytes, dtype=torch.uint8, device=device)
    *before, nearest, _ = recipe.launches
    for one in (*before, nearest):
        launch._start(one, one.kernel, (z, weights), work)
    price, partner = (
        work[room.offset : room.offset + 4 * room.extent].view(room.dtype).view(2, n)
        for room in nearest.arguments[6:8]
    )
    partner = partner.long()
    mutual = partner.gather(1, partner) == torch.arange(n, device=device)
    assert mutual.sum() > 20
    assert torch.equal(price[mutual], price.gather(1, partner)[mutual])


def test_three_products_of_tf32_are_exact_enough_for_distances() -> None:
    """As `tf32x3` adds them: the error is far below the share that `SHRINK` takes off products."""
    a, b = F.layer_norm(torch.randn(2, 200, 768) + 3, (768,))

    def short(x: Tensor) -> Tensor:
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)  # 10 bits of mantissa

    high, low = [short(x) for x in (a, b)], [short(x - short(x)) for x in (a, b)]
    products = low[0] @ high[1].T + high[0] @ low[1].T + high[0] @ high[1].T
    exact = a.double() @ b.double().T
    scale = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)
    error = ((products - exact).abs() / scale).max()
    assert error < constants.SHRINK / 16
    one = ((high[0] @ high[1].T - exact).abs() / scale).max()
    assert one > 4 * error


def test_pointers_that_form_a_circle_are_cut_open(device: str) -> None:
    """Five points: 0 -> 2 -> 1 -> 0, as no exact price would have them, and 3 <-> 4."""
    from tpcli.pooling.backends.triton import kernels

    price = torch.tensor([[1.0, 1.0, 1.0, 5.0, 5.0]], device=device)
    partner = torch.tensor([[2, 0, 1, 4, 3]], dtype=torch.int32, device=device)
    found = []
    for merges in (1, 2, 3):
        labels, lead, followers, into = (
            torch.zeros(1, 5, dtype=torch.int64, device=device) for _ in range(4)
        )
        scratch, rest = torch.empty_like(partner), torch.empty_like(price)
        kernels.join[(1,)](
            *(price, partner, labels, lead, scratch, labels, lead, followers, into),
            *(partner, rest, scratch, 5, 5, merges, 0, constants.RELUCTANCE, constants.PLACES),
            LATER=False,
            CHOSEN=False,
            N_BLOCK=16,
            JUMPS=4,
        )
        found.append(labels[0].tolist())
    assert found == [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2], [0, 0, 0, 1, 1]]


def test_tokens_may_lie_anywhere_in_memory(device: str) -> None:
    dense = tokens(2, 18, 24).to(device)
    wide = torch.randn(2, 28, 48, device=device)
    wide[:, 5:23, 12:36] = dense
    turned = dense.transpose(1, 2).contiguous().transpose(1, 2)
    swapped = dense.transpose(0, 1).contiguous().transpose(0, 1)
    weights = (torch.rand(18, 2).t() + 0.5).to(device)
    ways = [
        get_method("ward")(x, 16, weights=weights, iterations=0).labels
        for x in (dense, wide[:, 5:23, 12:36], turned, swapped)
    ]
    assert all(torch.equal(labels, ways[0]) for labels in ways[1:])


def test_a_batch_may_be_empty(device: str) -> None:
    z, ones = torch.randn(0, 8, 3, device=device), torch.ones(0, 8, device=device)
    assert get_method("ward")(z, 5, weights=ones, iterations=0).labels.shape == (0, 8)
