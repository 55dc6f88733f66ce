"""`tpcli bench --runtime`: base and pooled model in several runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.cli import Run
from tests.helpers.models import tiny_vit
from tpcli.bench import runtimes as timing
from tpcli.bench.clock import BenchOptions
from tpcli.config import choices as kinds
from tpcli.config.choices import RUNTIMES, Runtime
from tpcli.config.options import pooling_options
from tpcli.errors import UserError
from tpcli.surgery import TokenPooling, pooling_spec

OPTIONS = BenchOptions(batch_size=2, seconds=0.0)
WARD = pooling_options("ward")
QUICK = ("--batch-size", 2, "--seconds", 0, "--threads", 1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, int]]:
    """Runtimes that answer by torch, each a little off; what each was made ready of."""
    made: list[tuple[str, bool, int]] = []

    def prepare(runtime: str, model: nn.Module, images: Tensor, threads: int, folder: Path) -> Any:
        is_pooled = any(isinstance(module, TokenPooling) for module in model.modules())
        made.append((runtime, is_pooled, threads))
        off = 0.0 if runtime == "torch" else 0.25 if is_pooled else 0.125
        return lambda images: model(images) + off

    monkeypatch.setattr(timing, "prepare", prepare)
    monkeypatch.setattr(kinds, "find_spec", lambda name: None if name == "openvino" else name)
    return made


def test_base_and_pooled_model_in_each_runtime(quick: list[tuple[str, bool, int]]) -> None:
    model, threads = tiny_vit(), torch.get_num_threads()
    names = ["torch", "onnxruntime"]
    first, second = timing.bench_runtimes(model, "r:4", WARD, names, OPTIONS)
    assert quick == [(name, is_pooled, threads) for name in names for is_pooled in (False, True)]
    assert (first.runtime, first.schedule, first.method) == ("torch", "r:4", "ward")
    assert first.max_difference == 0
    assert second.max_difference == pytest.approx(0.25, abs=1e-5)
    assert second.base_max_difference == pytest.approx(0.125, abs=1e-5)
    assert first.rounds == second.rounds == 5
    assert pooling_spec(model) is None
    assert torch.get_num_threads() == threads


def test_what_is_not_there_is_said() -> None:
    gone = Runtime("openvino", ("nonsense_a", "nonsense_b"), "pip install a b")
    assert gone.missing == (
        "openvino needs nonsense_a and nonsense_b, which are not installed; run: pip install a b"
    )
    assert RUNTIMES["torch"].missing == ""
    with pytest.raises(UserError, match="runtime 'tflite' is unknown; use one of torch, onnx"):
        timing.bench_runtimes(tiny_vit(), "r:4", WARD, ["tflite"], OPTIONS)


def test_the_command(run: Run, quick: list[tuple[str, bool, int]], pooled_folder: Path) -> None:
    found = run("bench", pooled_folder, "--runtime", "torch,openvino,onnxruntime", *QUICK)
    assert found.code == 0, found.err
    assert found.err.count("\n") == 1
    assert "openvino" in found.err
    assert [line.split()[0] for line in found.out.splitlines()[3:5]] == ["torch", "onnxruntime"]
    documents = run("bench", pooled_folder, "--runtime", "torch", *QUICK, "--json").document
    assert documents[0].keys() >= {
        "model", "runtime", "method", "schedule", "device", "dtype", "batch_size", "speedup",
        "images_per_second", "base_images_per_second", "latency_ms", "max_difference",
    }  # fmt: skip
    assert documents[0]["schedule"] == "r:10"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--runtime tflite", "--runtime 'tflite' 'tflite' is unknown; use one of torch, onnx"),
        ("--runtime torch --compile", "--compile has no effect on --runtime"),
        ("--runtime torch --dtype bfloat16", "--dtype has no effect on --runtime"),
        ("--runtime torch --device cuda", "--device cuda has no effect on --runtime"),
        ("--runtime torch --out a.png", "--out has no effect on --runtime"),
        ("--runtime openvino", "openvino needs openvino, which is not installed"),
    ],
)
def test_mistakes(
    run: Run, quick: list[tuple[str, bool, int]], arguments: str, message: str
) -> None:
    found = run("bench", *arguments.split(), *QUICK)
    assert (found.code, quick) == (2, [])
    assert message.replace("'tflite' 'tflite'", "'tflite'") in found.err


@pytest.mark.long
@pytest.mark.parametrize("name", RUNTIMES)
def test_each_runtime_answers_as_torch_does(name: str) -> None:
    if RUNTIMES[name].missing:
        pytest.skip(RUNTIMES[name].missing)
    model = tiny_vit(depth=1)
    (found,) = timing.bench_runtimes(model, [40], WARD, [name], OPTIONS)
    assert found.base_max_difference < (0.2 if name.endswith("int8") else 1e-4)
    assert found.max_difference < (0.5 if name.endswith("int8") else 1e-4)
