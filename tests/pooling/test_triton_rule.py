"""When Triton's kernels stand in for torch's operators, how many there are, what if they fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.models import images, tiny_vit, tokens
from tests.helpers.recorded_launches import launches
from tpcli import count_flops, pool
from tpcli.pooling import Clusters, get_method, merge_tokens
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import triton
from tpcli.pooling.clusters import merge_by_operators
from tpcli.surgery.attention import AttentionInputs

needs_triton = pytest.mark.skipif(not triton.AVAILABLE, reason="Triton is not installed")

LABELS = torch.tensor([[4, 2, 4, 0, 2, 4], [3, 3, 1, 1, 5, 5]])
FREE = ("empty", "view", "slice", "select", "as_strided", "unsqueeze", "expand", "detach", "alias")
"""Operators that launch nothing, by how their names begin or end."""


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU are taken for those of a GPU, and there are no loops in C."""
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    monkeypatch.setattr(triton, "failed", False)
    monkeypatch.setattr(c_kernels, "kernels", None)


@pytest.fixture
def forbidden(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch is an error that is not passed over."""

    def launched(form: str, tensors: object, *arguments: object) -> None:
        if triton.can_run(*tensors):  # type: ignore[misc]
            raise AssertionError(f"the kernels of {form} were launched")

    monkeypatch.setattr(triton, "_launched", launched)


class Counter(TorchDispatchMode):
    """Counts the operators that do something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = function.overloadpacket.__name__
        if not any(name.startswith(free) or name.endswith(free) for free in FREE):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@needs_triton
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("rounds", "allowed"), [(1, 6), (2, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pooling_is_a_handful_of_launches(
    rounds: int, allowed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole layer, operators around the kernels included; at 256 tokens a sketch pays."""
    model = tiny_vit(depth=2, img_size=64, embed_dim=384, num_heads=6)
    model = pool(model, [256, 240], "ward", iterations=rounds)
    layer = model.blocks[1].token_pooling  # type: ignore[index, union-attr]
    x, sizes = torch.randn(2, 257, 384).to(dtype), torch.ones(2, 256)
    counter = Counter()
    monkeypatch.setattr(triton, "can_run", lambda *tensors: True)  # though a mode watches

    def call() -> None:
        with torch.inference_mode(), counter:
            layer(x, sizes, None, AttentionInputs(1.0, None))

    made = [launch.name for launch in launches(call)]
    assert "choose" in made
    assert len(made) + len(counter.names) <= allowed, (made, counter.names)


@needs_triton
@pytest.mark.usefixtures("forbidden")
class TestStandAside:
    """Where somebody watches the operators, there are operators to see."""

    model = pool(tiny_vit(depth=2), "r:10", "ward")
    batch = images(2)

    def test_but_not_otherwise(self) -> None:
        with pytest.raises(AssertionError, match="were launched"), torch.no_grad():
            self.model(self.batch)

    def test_gradients_flow(self) -> None:
        x = torch.randn(2, 6, 3, requires_grad=True)
        clusters = Clusters(*(torch.zeros(2, count, dtype=torch.int64) for count in (3, 3, 3)))
        assert triton.means(x, clusters, *[torch.ones(2, 6)] * 2, 0, 0) is None

    def test_a_trace_sees_them(self) -> None:
        with torch.no_grad():
            torch.jit.trace(self.model, self.batch, check_trace=False)

    def test_an_export_sees_them(self) -> None:
        program = torch.export.export(self.model, (self.batch,))
        assert "tpcli" not in program.graph_module.code

    def test_counters_see_them(self) -> None:
        with torch.no_grad(), FlopCounterMode(display=False):
            self.model(self.batch)
        count_flops(self.model)

    def test_vectorized_calls_see_them(self) -> None:
        def labels(sample: Tensor, weights: Tensor) -> Tensor:
            return get_method("ward")(sample[None], 6, weights=weights, iterations=0).labels

        torch.vmap(labels)(tokens(3, 8, 4), torch.ones(3, 1, 8))

    def test_more_tokens_or_other_types_than_kernels_take(self) -> None:
        for z in (tokens(1, 8, 4).double(), tokens(1, 1025, 4), tokens(1, 8, 2049)):
            ones = torch.ones(z.shape[:2])
            assert triton.ward_labels(z, ones, z.shape[1], [1], False) is None

    def test_shapes_that_do_not_fit_are_an_error(self) -> None:
        z, ones = tokens(2, 9, 4), torch.ones(1, 9)
        with pytest.raises(ValueError, match=r"weights has the shape .*; .*2, 9.* is needed"):
            get_method("ward")(z, 5, weights=ones, iterations=0)


@needs_triton
@pytest.mark.usefixtures("on_cpu")
def test_a_kernel_that_fails_is_told_once_and_operators_take_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tpcli.pooling.backends.triton import launch

    def run(*arguments: object, **sizes: object) -> None:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(launch, "run", run)
    x, ones = torch.randn(2, 6, 3), torch.ones(2, 6)
    found = [merge_tokens(x, LABELS, 3, ones, ones) for _ in range(2)]
    assert caplog.messages == [
        "a Triton kernel could not be run (RuntimeError: no such instruction); pooling goes on in "
        "torch's operators, which are slower on a GPU"
    ]
    expected = merge_by_operators(x, Clusters.from_labels(LABELS, 3), ones, ones, 0, 0)
    for merged in found:
        assert torch.equal(merged.tokens, expected[0])


@needs_triton
@pytest.mark.usefixtures("on_cpu")
def test_running_out_of_memory_is_no_fault_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from tpcli.pooling.backends.triton import launch

    def run(*arguments: object, **sizes: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(launch, "run", run)
    with pytest.raises(torch.OutOfMemoryError):
        Clusters.from_labels(LABELS, 3)
    assert not triton.failed


class TestInGraphs:
    """As operators of torch; without a card they run the operators that define them."""

    def test_they_keep_the_rules_of_operators(self) -> None:
        weights = torch.rand(2, 12) + 0.5
        opcheck(torch.ops.tpcli.ward_labels.default, (tokens(2, 12, 6), weights, 12, [2, 1], True))
        opcheck(torch.ops.tpcli.number.default, (LABELS, 3, None))
        clusters = Clusters.from_labels(LABELS, 3)
        x = torch.randn(2, 7, 4, requires_grad=True)
        for length in range(3):
            shares = (torch.ones(2, 6), torch.rand(2, 6) + 0.1)
            opcheck(torch.ops.tpcli.means.default, (x, *clusters, *shares, 1, length))

    @pytest.mark.parametrize("length", [0, 1, 2], ids=["mean", "norm", "longest"])
    @pytest.mark.parametrize("opposite", [False, True])
    def test_their_gradient_is_that_of_the_operators(self, length: int, opposite: bool) -> None:
        clusters, weights = Clusters.from_labels(LABELS, 3), torch.rand(2, 6) + 0.1
        x = torch.randn(2, 7, 4)
        if opposite:  # a mean that the largest stretch leaves short
            weights = torch.ones(2, 6)
            x[1, 2] = 1e-4 - x[1, 1]
        x.requires_grad_()
        upstream = torch.randn(2, 4, 4)
        shares = (weights, weights, 1, length)
        ways = [
            torch.autograd.grad(tokens_of, x, upstream)[0]
            for tokens_of in (
                torch.ops.tpcli.means(x, *clusters, *shares)[0],
                merge_by_operators(x, clusters, *shares)[0],
            )
        ]
        torch.testing.assert_close(*ways)

    @needs_triton
    @pytest.mark.usefixtures("on_cpu")
    @pytest.mark.parametrize("method", ["ward", "tome"])
    def test_a_compiled_model_is_one_graph_with_them(self, method: str) -> None:
        model = pool(tiny_vit(depth=2), "r:10", method)
        graphs: list[str] = []

        def backend(graph: torch.fx.GraphModule, inputs: object) -> nn.Module:
            graphs.append(graph.code)
            return graph

        compiled = torch.compile(model, backend=backend, fullgraph=True)
        batch = images(2)
        logits = compiled(batch)
        (code,) = graphs
        assert "tpcli.means" in code
        assert ("tpcli.ward_labels" in code) == (method == "ward")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton, "AVAILABLE", False)
            torch.testing.assert_close(logits, model(batch))

    @needs_triton
    @pytest.mark.usefixtures("on_cpu")
    def test_a_compiled_model_learns(self) -> None:
        model = pool(tiny_vit(depth=2), "r:10", "ward")
        batch = images(2)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(batch).sum(), list(model.parameters()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton, "AVAILABLE", False)
            expected = torch.autograd.grad(model(batch).sum(), list(model.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
