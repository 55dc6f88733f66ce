"""The benchmark's parts that are not about time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.helpers.cli import Run
from tests.helpers.models import tiny_vit
from tpcli import pool
from tpcli.bench.clock import BenchOptions
from tpcli.bench.compare import bench, cut, peak_memory
from tpcli.config.options import pooling_options
from tpcli.pooling.backends import c as c_kernels
from tpcli.surgery import TokenPooling, pooling_spec


@pytest.mark.parametrize("method", ["ward", "tome", "evit", "wk-medoids"])
def test_ideal_keeps_the_first_tokens_and_nothing_else(method: str) -> None:
    """Also of methods that read keys or attention, which the ideal does not."""
    model = cut(pool(tiny_vit(), [50, 40, 30, 20], method))
    seen = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with torch.inference_mode():
        model(torch.randn(2, 3, 32, 32))
    assert [tuple(shape) for shape in seen] == [(2, 1 + n, 48) for n in (50, 40, 30, 20)]


def test_result_is_consistent_and_the_model_is_left_alone() -> None:
    model = tiny_vit()
    options = BenchOptions(batch_size=2, device="cpu", seconds=0.0)
    result = bench(model, "r:4", pooling_options("ward"), options)
    assert pooling_spec(model) is None
    assert not any(isinstance(module, TokenPooling) for module in model.modules())
    assert result.rounds == 5
    assert 0 < result.pooling_share < 1
    for timing in (result.base, result.pooled, result.ideal):
        assert timing.latency_ms <= timing.latency_p95_ms
        assert abs(timing.images_per_second - 2000 / timing.latency_ms) < 1e-6


class Grows(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = torch.cat([x, x])
        twice = torch.cat([doubled, doubled])
        del doubled
        return torch.cat([twice, twice])


def test_peak_memory_is_what_is_held_at_once() -> None:
    x = torch.randn(1, 25_000)  # 100,000 bytes; 200, then 200 + 400, then 400 + 800 are held
    with torch.inference_mode():
        assert peak_memory(lambda: Grows()(x), torch.device("cpu")) == 1_200_000


def test_the_command_writes_a_chart_and_a_table(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.png"
    rows = ("--method", "ward,tome", "--batch-size", 1, "--batch-size", 2, "--schedule", "r:10")
    documents = run("bench", model_folder, *rows, "--seconds", 0, "--out", out, "--json").document
    table = pd.read_csv(out.with_suffix(".csv"))
    assert list(table["method"]) == [d["method"] for d in documents] == ["ward", "tome"] * 2
    assert (table["peak_memory"] > 0).all()
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "'bench.xls' has no known suffix" in run("bench", "--out", "bench.xls").err


def test_the_table_says_where_the_compiled_loops_are_missing(
    run: Run, pooled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("bench", pooled_folder, "--batch-size", 1, "--seconds", 0, "--device", "cpu")
    monkeypatch.setattr(c_kernels, "kernels", None)
    assert "C compiler" in run(*quick).out
    monkeypatch.undo()
    assert ("C compiler" in run(*quick).out) == (c_kernels.kernels is None)


def test_several_schedules_stand_side_by_side(run: Run, model_folder: Path, tmp_path: Path) -> None:
    asked = ("tokens:50,40,30,20", "flops:0.7@1,2")
    schedules = [word for schedule in asked for word in ("--schedule", schedule)]
    quick = (*schedules, "--method", "top-k", "--batch-size", 1, "--seconds", 0)
    out = tmp_path / "bench.svg"
    documents = run("bench", model_folder, *quick, "--out", out, "--json").document
    assert [d["schedule"] for d in documents] == list(asked)
    assert documents[0]["tokens"] == [50, 40, 30, 20]
    first, *pooled, last = documents[1]["tokens"]
    assert first == 64 > pooled[0] > pooled[1] == last  # all removal at blocks 1 and 2
    assert all(schedule in out.read_text() for schedule in asked)
