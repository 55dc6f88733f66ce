"""The C kernels against torch's operators, and when they stand aside."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import pooling_reference as reference
from tests.helpers.models import images, tiny_vit, tokens
from tpcli import pool
from tpcli.pooling import Clusters, get_method, merge_tokens
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import dispatch
from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.ward import sketch_saves

needs_kernels = pytest.mark.skipif(
    c_kernels.kernels is None, reason="the kernels were not compiled"
)


class Forbidden:
    """Stands for the kernels where they must not be called."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the kernel {name} was called")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_kernels, "kernels", Forbidden())


def without_kernels(call: Callable[[], object]) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c_kernels, "kernels", None)
        return call()


def builds_openmp(folder: Path) -> bool:
    """Whether the C compiler knows `-fopenmp`; Apple's does not."""
    source = folder / "empty.c"
    source.touch()
    command = ["cc", "-fopenmp", "-c", str(source), "-o", str(folder / "empty.o")]
    return shutil.which("cc") is not None and subprocess.run(command, check=False).returncode == 0


def test_they_are_built_where_there_is_a_compiler(tmp_path: Path) -> None:
    if not builds_openmp(tmp_path):
        pytest.skip("no C compiler with OpenMP")
    assert c_kernels.kernels is not None, c_kernels.not_built


@needs_kernels
@pytest.mark.parametrize(
    ("n", "k", "channels", "iterations"),
    [
        (196, 183, 384, 0),  # one round, a sketch
        (128, 112, 384, 4),  # rounds after a sketch
        (64, 60, 24, 0),
        (50, 20, 7, 0),
        (40, 1, 6, 0),
        (17, 16, 3, 0),
        (2, 1, 5, 0),
    ],
)
@pytest.mark.parametrize("normalized", [False, True])
def test_ward_makes_the_same_clusters(
    n: int, k: int, channels: int, iterations: int, normalized: bool
) -> None:
    z, weights = tokens(5, n, channels, groups=max(n // 3, 2)), torch.rand(5, n) + 0.5

    def labels() -> Tensor:
        return get_method("ward")(
            z, k, weights=weights, iterations=iterations, normalized=normalized
        ).labels

    found, expected = labels(), without_kernels(labels)
    assert isinstance(expected, Tensor)
    for b in range(5):
        assert reference.partition(found[b].numpy()) == reference.partition(expected[b].numpy())


def test_the_cases_above_take_both_ways() -> None:
    assert sketch_saves(196, 183, 384)
    assert sketch_saves(128, 112, 384)
    assert not sketch_saves(64, 60, 24)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("k", [1, 9, 29])
def test_merging_leaves_the_same(dtype: torch.dtype, keep_norms: bool, prefix: int, k: int) -> None:
    n = 30
    x = (torch.randn(4, prefix + n, 20) + 1).to(dtype)
    owners = torch.cat([torch.arange(k), torch.randint(k, (n - k,))])
    labels = torch.stack([owners[torch.randperm(n)] for _ in range(4)])
    counted, shares = torch.rand(4, n) + 0.5, torch.rand(4, n)

    def merged() -> tuple[Tensor, Tensor, Clusters]:
        return merge_tokens(x, labels, k, counted, shares, prefix=prefix, keep_norms=keep_norms)

    found, expected = merged(), without_kernels(merged)
    assert isinstance(expected, tuple)
    for one, other in zip(found[2], expected[2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(found[1], expected[1])
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0], expected[0])


@needs_kernels
def test_tokens_may_lie_anywhere_in_memory() -> None:
    dense = tokens(3, 60, 24)
    wide = torch.randn(3, 70, 48)
    wide[:, 5:65, 12:36] = dense
    turned = dense.transpose(1, 2).contiguous().transpose(1, 2)
    weights = torch.rand(60, 3).t() + 0.5
    results = []
    for x in (dense, wide[:, 5:65, 12:36], turned):
        labels = get_method("ward")(x, 40, weights=weights, iterations=0).labels
        results.append((labels, *merge_tokens(x, labels, 40, weights, weights)[:2]))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)


@needs_kernels
def test_labels_may_be_of_any_integer_type() -> None:
    x, ones = torch.randn(2, 4, 3), torch.ones(2, 4)
    labels = torch.tensor([[0, 0, 2, 3], [1, 2, 1, 0]])
    expected = merge_tokens(x, labels, 3, ones, ones).tokens
    assert torch.equal(merge_tokens(x, labels.to(torch.int32), 3, ones, ones).tokens, expected)


@needs_kernels
def test_a_batch_may_be_empty() -> None:
    x, ones = torch.randn(0, 8, 3), torch.ones(0, 8)
    labels = get_method("ward")(x, 5, weights=ones, iterations=0).labels
    assert merge_tokens(x, labels, 5, ones, ones).tokens.shape == (0, 5, 3)


@needs_kernels
def test_threads_change_nothing() -> None:
    x, weights = tokens(7, 64, 24), torch.ones(7, 64)
    results = []
    for threads in (1, 3, 16):
        torch.set_num_threads(threads)
        try:
            labels = get_method("ward")(x, 50, weights=weights, iterations=0).labels
            results.append((labels, merge_tokens(x, labels, 50, weights, weights).tokens))
        finally:
            torch.set_num_threads(1)
    for labels, merged in results[1:]:
        assert torch.equal(labels, results[0][0])
        assert torch.equal(merged, results[0][1])


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_still_make_k_clusters(bad: float) -> None:
    z = tokens(2, 40, 6)
    z[0, 3] = bad
    z[1] = bad
    labels = get_method("ward")(z, 25, weights=torch.ones(2, 40), iterations=0).labels
    assert [len(row.unique()) for row in labels] == [25, 25]


@needs_kernels
@pytest.mark.parametrize(
    ("name", "value"),
    [("RELUCTANCE", 1.2), ("SKETCH_DIM", 37), ("LAYER_NORM_EPSILON", 3.0)],
)
def test_both_forms_take_the_same_constants(
    monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    def labels() -> Tensor:
        weights = torch.ones(8, 128)
        return get_method("ward")(z, 116, weights=weights, iterations=0, normalized=True).labels

    z = tokens(8, 128, 384, groups=40)
    before = labels()
    monkeypatch.setattr(constants, name, value)
    found, expected = labels(), without_kernels(labels)
    assert isinstance(expected, Tensor)
    assert not torch.equal(found, before), "a constant without effect would prove nothing"
    for one, other in zip(found, expected, strict=True):
        assert reference.partition(one.numpy()) == reference.partition(other.numpy())


@needs_kernels
def test_both_forms_stretch_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    x, ones = torch.randn(2, 12, 4), torch.ones(2, 12)
    labels = torch.arange(12).remainder(3).expand(2, 12)

    def merged() -> Tensor:
        return merge_tokens(x, labels, 3, ones, ones, keep_norms=True).tokens

    before = merged()
    monkeypatch.setattr(constants, "LARGEST_STRETCH", 1.1)
    assert not torch.equal(merged(), before)
    torch.testing.assert_close(merged(), without_kernels(merged))


@needs_kernels
def test_which_form_runs_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ward(z: Tensor) -> None:
        get_method("ward")(z, 5, weights=torch.ones(2, 8), iterations=0)

    caplog.set_level(logging.DEBUG, "tpcli")
    c_kernels._tell.cache_clear()
    for _ in range(3):
        ward(tokens(2, 8, 4))
    assert len(caplog.messages) == 1
    monkeypatch.setattr(c_kernels, "kernels", None)
    monkeypatch.setattr(c_kernels, "not_built", " (no module)")
    ward(tokens(2, 8, 4))
    assert len(caplog.messages) == 2
    assert "(no module)" in caplog.messages[1]


@needs_kernels
def test_without_torchs_private_counter_they_stand_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_dispatch_modes", None)
    assert not c_kernels.can_run(torch.ones(1))


@needs_kernels
@pytest.mark.parametrize("labels", [[0, 0, 0, 3], [0, 1, 2, 3], [0, 1, -1, 0], [0, 1, 9, 1]])
def test_labels_that_are_no_k_clusters_are_refused(labels: list[int]) -> None:
    x, ones = torch.randn(1, 4, 2), torch.ones(1, 4)
    assert c_kernels.merge_tokens(x, torch.tensor([labels]), 3, ones, ones, 0, False, True) is None


@pytest.mark.usefixtures("forbidden")
class TestStandAside:
    """Where the operators are recorded, there are operators to record."""

    model = pool(tiny_vit(depth=2), "r:10", "ward")
    batch = images(2)

    def test_but_not_otherwise(self) -> None:
        with pytest.raises(AssertionError, match="was called"), torch.no_grad():
            self.model(self.batch)

    def test_gradients_flow(self) -> None:
        x = torch.randn(1, 4, 3, requires_grad=True)
        labels, ones = torch.tensor([[0, 0, 2, 3]]), torch.ones(1, 4)
        merge_tokens(x, labels, 3, ones, ones).tokens.sum().backward()
        assert x.grad is not None

    def test_a_trace_sees_them(self) -> None:
        with torch.no_grad():
            torch.jit.trace(self.model, self.batch, check_trace=False)

    @pytest.mark.long
    def test_an_export_sees_them(self) -> None:
        torch.export.export(self.model, (self.batch,))

    def test_a_counter_sees_them(self) -> None:
        with torch.no_grad(), FlopCounterMode(display=False):
            self.model(self.batch)

    @pytest.mark.long
    def test_a_compiler_sees_them(self) -> None:
        with torch.no_grad():
            torch.compile(self.model, backend="eager", fullgraph=True)(self.batch)

    def test_vectorized_calls_see_them(self) -> None:
        z, ones = tokens(3, 8, 4), torch.ones(3, 1, 8)

        def labels(sample: Tensor, weights: Tensor) -> Tensor:
            return get_method("ward")(sample[None], 6, weights=weights, iterations=0).labels

        torch.vmap(labels)(z, ones)

    def test_other_types_are_left_to_torch(self) -> None:
        z, ones = tokens(2, 8, 4).double(), torch.ones(2, 8)
        labels = get_method("ward")(z, 6, weights=ones, iterations=0).labels
        merge_tokens(z, labels, 6, ones, ones)
