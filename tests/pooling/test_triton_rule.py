"""When Triton's kernels replace torch's operators, how many there are, what if they fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers.models import images, tiny_vit, tokens
from tpcli import count_flops, pool
from tpcli.pooling import Clusters, get_method, merge_tokens
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import triton
from tpcli.pooling.clusters import merge_by_operators, number_by_operators
from tpcli.surgery.attention import AttentionInputs

if TYPE_CHECKING:
    from tests.helpers.fake_gpu import FakeDriver

needs_triton = pytest.mark.skipif(
    not triton.AVAILABLE or triton.INTERPRETED, reason="Triton is not installed, or interprets"
)

CPU = torch.device("cpu")
LABELS = torch.tensor([[4, 2, 4, 0, 2, 4], [3, 3, 1, 1, 5, 5]])
FREE = ("empty", "view", "slice", "select", "as_strided", "unsqueeze", "expand", "detach", "alias")
"""Operators that launch nothing, by how their names begin or end."""


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU are taken for those of a GPU, and there are no kernels in C.

    Triton finds no driver for it, so that each launch fails.
    """
    monkeypatch.setattr(triton, "DEVICES", ("cpu",))
    monkeypatch.setattr(triton, "switched_off", set())
    monkeypatch.setattr(triton, "_checked", {CPU})
    monkeypatch.setattr(c_kernels, "kernels", None)


@pytest.fixture
def forbidden(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch is an error that is not passed over."""

    def launched(form: str, device: object, *arguments: object) -> None:
        raise AssertionError(f"the kernels of {form} were launched")

    monkeypatch.setattr(triton, "guarded", launched)


@pytest.fixture
def driver() -> Iterator[object]:
    """A GPU on which nothing is computed."""
    from tests.helpers.fake_gpu import fake_gpu

    with fake_gpu() as found:
        yield found


@needs_triton
@pytest.mark.parametrize(("rounds", "allowed"), [(1, 6), (2, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pooling_is_a_handful_of_launches(
    driver: FakeDriver, rounds: int, allowed: int, dtype: torch.dtype
) -> None:
    """Of a whole layer, operators around the kernels included; at 256 tokens a sketch pays."""
    model = tiny_vit(depth=2, img_size=64, embed_dim=384, num_heads=6)
    model = pool(model, [256, 240], "ward", iterations=rounds)
    layer = model.blocks[1].token_pooling  # type: ignore[index, union-attr]
    x, sizes = torch.randn(2, 257, 384).to(dtype), torch.ones(2, 256)
    starts = []
    with torch.inference_mode():
        for _ in range(3):
            driver.started.clear()
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                layer(x, sizes, None, AttentionInputs(1.0, None))
            starts.append(list(driver.started))
    operators = [event.name[6:] for event in profiler.events() if event.name.startswith("aten::")]
    free = [name for name in operators if name.startswith(FREE) or name.endswith(FREE)]
    assert len(starts[-1]) + len(operators) - len(free) <= allowed, (starts[-1], operators)
    assert any(start.name == "choose" for start in starts[0])
    assert len(starts[0]) == len(starts[1]) == len(starts[2])


@needs_triton
def test_arguments_that_were_prepared_are_those_that_triton_binds(driver: FakeDriver) -> None:
    """The first call goes through Triton's binder; later ones fill in pointers themselves."""
    x, ones = torch.randn(2, 301, 384).bfloat16(), torch.ones(2, 300)
    for k in (287, 240, 1):
        calls = []
        for _ in range(3):
            driver.started.clear()
            if k > 1:
                get_method("ward")(x[:, 1:], k, weights=ones, iterations=0, normalized=True)
            else:
                merge_tokens(x, torch.zeros(2, 300, dtype=torch.int64), 1, ones, ones, prefix=1)
            calls.append(list(driver.started))
        bound, *prepared = calls
        for call in prepared:
            assert [(start.name, start.programs) for start in call] == [
                (start.name, start.programs) for start in bound
            ]
            for start, first in zip(call, bound, strict=True):
                for one, other in zip(start.arguments, first.arguments, strict=True):
                    if isinstance(other, Tensor):
                        own = other.data_ptr() in (
                            x[:, 1:].data_ptr(),
                            x.data_ptr(),
                            ones.data_ptr(),
                        )
                        assert one == other.data_ptr() or not own
                        assert one % 16 == 0
                    else:
                        assert one == other


@needs_triton
@pytest.mark.usefixtures("forbidden")
class TestStandAside:
    """Where the operators are recorded, there are operators to record."""

    model = pool(tiny_vit(depth=2), "r:10", "ward")
    batch = images(2)

    def test_but_not_otherwise(self) -> None:
        with pytest.raises(AssertionError, match="launched"), torch.no_grad():
            self.model(self.batch)

    def test_gradients_flow(self) -> None:
        x = torch.randn(2, 6, 3, requires_grad=True)
        clusters = Clusters(*(torch.zeros(2, count, dtype=torch.int64) for count in (3, 3, 3)))
        assert triton.means(x, clusters, *[torch.ones(2, 6)] * 2, 0, 0) is None

    def test_a_trace_sees_them(self) -> None:
        with torch.no_grad():
            torch.jit.trace(self.model, self.batch, check_trace=False)

    @pytest.mark.long
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
        for z in (tokens(1, 8, 4).double(), tokens(1, 4097, 4), tokens(1, 8, 2049)):
            ones = torch.ones(z.shape[:2])
            assert triton.ward_labels(z, ones, z.shape[1], [1], False) is None

    def test_shapes_that_do_not_fit_are_an_error(self) -> None:
        z, ones = tokens(2, 9, 4), torch.ones(1, 9)
        with pytest.raises(ValueError, match=r"weights has the shape .*; .*2, 9.* is needed"):
            get_method("ward")(z, 5, weights=ones, iterations=0)


@needs_triton
@pytest.mark.usefixtures("on_cpu")
class TestFailures:
    """Triton finds no driver for the CPU: every launch fails, for a real reason."""

    def test_one_kernel_is_switched_off_on_one_device_and_said_so_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        x, ones = torch.randn(2, 6, 3), torch.ones(2, 6)
        found = [merge_tokens(x, LABELS, 3, ones, ones) for _ in range(2)]
        expected = merge_by_operators(x, number_by_operators(LABELS, 3), ones, ones, 0, 0)
        for merged in found:
            assert torch.equal(merged.tokens, expected[0])
        assert triton.switched_off == {(CPU, "number"), (CPU, "means")}
        said = [record.getMessage() for record in caplog.records]
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
        assert all(name in text for name, text in zip(("number", "means"), said, strict=True))
        z = tokens(1, 8, 4)
        assert triton._has_kernels("ward", z, 8) is False
        assert triton._has_kernels("number", torch.empty(1, 8, device="meta"), 8) is False

    def test_another_device_keeps_its_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        triton.switch_off(torch.device("cuda", 0), "number", "fails")
        assert triton._has_kernels("number", LABELS, 6)
        triton.switch_off(CPU, "number", "fails")
        assert not triton._has_kernels("number", LABELS, 6)
        assert triton._has_kernels("means", LABELS, 6)

    def test_the_first_use_finds_what_does_not_work(self) -> None:
        triton._checked.clear()
        z, ones = tokens(2, 9, 4), torch.ones(2, 9)
        assert triton.ward_labels(z, ones, 9, [2], False) is None
        assert (CPU, "means") in triton.switched_off
        assert {name for _, name in triton.switched_off} <= {
            name for names in triton.KERNELS.values() for name in names
        }

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
            RuntimeError("CUDA error: operation not permitted when stream is capturing"),
            torch.OutOfMemoryError("CUDA out of memory"),
        ],
    )
    def test_errors_of_the_device_are_raised_and_switch_nothing_off(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tpcli.pooling.backends.triton import launch

        def start(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(launch, "_start", start)
        with pytest.raises(type(error)):
            Clusters.from_labels(LABELS, 3)
        assert not triton.switched_off

    def test_a_capture_before_the_first_pooling_runs_operators_and_checks_later(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        triton._warn.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not triton._first_use("ward", torch.device("cuda", 0))
        assert torch.device("cuda", 0) not in triton._checked
        assert not triton.switched_off
        assert [record.levelno for record in caplog.records] == [logging.WARNING]

    @pytest.mark.parametrize("shape", [(1, 4097, 4), (1, 8, 2049)])
    def test_what_kernels_do_not_take_is_said_once(
        self, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        triton._warn.cache_clear()
        z, ones = tokens(*shape), torch.ones(shape[:2])
        for _ in range(2):
            assert triton.ward_labels(z, ones, z.shape[1], [1], False) is None
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert str(max(shape)) in record.getMessage()


@pytest.mark.long
@needs_triton
def test_a_kernel_that_computes_something_else_is_switched_off(
    driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernels of this GPU compute nothing at all."""
    triton._checked.clear()
    labels = get_method("ward")(
        tokens(2, 9, 4), 5, weights=torch.ones(2, 9), iterations=0, normalized=True
    ).labels
    assert [len(row.unique()) for row in labels] == [5, 5]
    assert {name for _, name in triton.switched_off} == {
        name for names in triton.KERNELS.values() for name in names
    }
    assert all(record.levelno == logging.WARNING for record in caplog.records)


class TestInGraphs:
    """As operators of torch; without a card they run the operators that define them."""

    @pytest.mark.long
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
        variants = [
            torch.autograd.grad(tokens_of, x, upstream)[0]
            for tokens_of in (
                torch.ops.tpcli.means(x, *clusters, *shares)[0],
                merge_by_operators(x, clusters, *shares)[0],
            )
        ]
        torch.testing.assert_close(*variants)

    @pytest.mark.long
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

    @pytest.mark.long
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

    @needs_triton
    def test_inductor_sees_the_kernels_and_no_copy(
        self, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tpcli.pooling.backends.triton import launch

        def pooled(x: Tensor, weights: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            _, *parts = torch.ops.tpcli.ward_labels(x, weights, 64, [13], True)
            numbered = torch.ops.tpcli.number(labels, 20, None)
            return *torch.ops.tpcli.means(x, *parts, weights, weights, 0, 1), *numbered

        monkeypatch.setattr(launch, "precision_on", lambda device: "tf32x3")
        with FakeTensorMode():
            x = torch.empty(2, 196, 384, device="cuda", dtype=torch.bfloat16)
            weights = torch.empty(2, 196, device="cuda")
            labels = torch.empty(2, 196, device="cuda", dtype=torch.int64)
            traced = make_fx(dispatch_functionalize(pooled), tracing_mode="fake")
            graph = traced(x, weights, labels).graph
        names = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert sum("triton_kernel_wrapper" in name for name in names) == 7
        rest = {name for name in names if "triton_kernel_wrapper" not in name}
        assert rest <= {
            "<built-in function getitem>",
            "aten.empty.memory_format",
            "aten.new_empty.default",
        }
