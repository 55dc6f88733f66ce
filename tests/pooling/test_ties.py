"""Equal tokens and equal costs: the lowest position wins, whatever a runtime does with ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import pooling_reference as reference
from tests.helpers.pooling_reference import partition
from tpcli.pooling import Method, get_method, methods
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.ties import highest, in_order, lowest, positions_of
from tpcli.pooling.ward import candidate_count, sketch_saves

N, CHANNELS = 36, 4
LATTICE = torch.tensor([[i // 6, i % 6, 0, 0] for i in range(N)]).float()
"""Whole numbers, so that no distance is rounded; each token has up to four nearest neighbours."""
TOKENS = {
    "all equal": torch.ones(2, N, CHANNELS),
    "duplicates": torch.stack([LATTICE[:5].repeat(8, 1)[:N], LATTICE[3::6].repeat(6, 1)]) + 1,
    "equal distances": torch.stack([LATTICE, LATTICE.flip(0)]) + 1,
    "mutual pairs": torch.stack([4 * LATTICE[:18].repeat_interleave(2, 0)] * 2)
    + torch.tensor([0.0, 1.0]).repeat(18).unsqueeze(1),
}
KEEP = (1, 7, 20, 35)
every_kind = pytest.mark.parametrize("kind", TOKENS)


def labels_of(method: Method, z: Tensor, k: int) -> Tensor:
    ones = torch.ones(z.shape[:2])
    return method(
        z,
        k,
        weights=ones,
        sizes=ones,
        start="matching",
        iterations=3,
        grid=(6, 6),
        depth=0.5,
        normalized=False,
    ).labels


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_kernels, "kernels", None)


class LastFirst(TorchDispatchMode):
    """A runtime that prefers the last of equal values."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in ("argmin", "argmax", "min", "max") and len(args) > 1:
            values, dim = args[0], args[1]
            turned = function(values.flip(dim), *args[1:], **kwargs)
            last = values.shape[dim] - 1
            return last - turned if isinstance(turned, Tensor) else (turned[0], last - turned[1])
        if name == "sort":
            values, dim = args[0], kwargs.get("dim", args[1] if len(args) > 1 else -1)
            ordered, index = function(values.flip(dim), *args[1:], **kwargs)
            return ordered, values.shape[dim] - 1 - index
        if name == "topk":
            raise AssertionError("which of equal values topk takes is nobody's promise")
        return function(*args, **kwargs)


def test_the_runtime_that_prefers_the_last_does() -> None:
    ones = torch.ones(2, 4)
    with LastFirst():
        assert ones.argmin(1).tolist() == [3, 3]
        assert ones.min(1).indices.tolist() == [3, 3]
        assert ones.sort(dim=1).indices[0].tolist() == [3, 2, 1, 0]


def test_order_is_by_value_then_position() -> None:
    values = torch.tensor([[2.0, 1.0, 2.0, -0.0, 1.0, 0.0], [torch.inf] * 5 + [1.0]])
    with LastFirst():
        assert in_order(values).tolist() == [[3, 5, 1, 4, 0, 2], [5, 0, 1, 2, 3, 4]]
        assert in_order(values, descending=True).tolist() == [[0, 2, 1, 4, 3, 5], [*range(6)]]
        assert lowest(values)[1].tolist() == [3, 5]
        assert highest(values, 2)[0].nonzero().flatten().tolist() == [0, 2]
        assert positions_of(values > 0, 5)[0].tolist() == [0, 1, 2, 4, 3]


@pytest.mark.usefixtures("operators")
@every_kind
@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_no_method_leaves_a_tie_to_the_runtime(method: Method, kind: str) -> None:
    z = TOKENS[kind]
    for k in (1, 9, 30) if method.name == "grid" else KEEP:
        expected = labels_of(method, z, k)
        with LastFirst():
            assert torch.equal(labels_of(method, z, k), expected)
        assert [len(row.unique()) for row in expected] == [k, k]


@every_kind
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_ward_decides_ties_as_plain_loops_do(either_form: None, kind: str, rounds: int) -> None:
    z, ones = TOKENS[kind], torch.ones(2, N)
    for k in KEEP:
        labels = get_method("ward")(z, k, weights=ones, iterations=rounds).labels
        for row in range(2):
            expected = reference.ward(
                z[row].double().numpy(), k, ones[row].double().numpy(), rounds
            )
            assert partition(labels[row].numpy()) == partition(np.array(expected))


def test_a_sketch_that_ends_in_a_tie_chooses_as_the_loops_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pairs at the same distance: half of one may be the last candidate."""
    pairs = torch.randint(-9, 9, (3, 64, 384)).float().repeat_interleave(2, 1)
    z = pairs + torch.tensor([0.0, 1.0]).repeat(64).unsqueeze(1)
    k = 128 - 9
    assert sketch_saves(128, k, 384)
    assert candidate_count(128, k) % 2 == 1
    loops = labels_of(get_method("ward"), z, k)
    monkeypatch.setattr(c_kernels, "kernels", None)
    expected = labels_of(get_method("ward"), z, k)
    with LastFirst():
        assert torch.equal(labels_of(get_method("ward"), z, k), expected)
    for one, other in zip(loops, expected, strict=True):
        assert partition(one.numpy()) == partition(other.numpy())
