"""The same clusters in other runtimes, where they could decide ties differently."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tpcli.pooling import get_method, methods
from tpcli.pooling.backends import c as c_kernels

from .test_ties import CHANNELS, TOKENS, N, labels_of

Call = Callable[[Tensor], Tensor]


class Labels(nn.Module):
    """The clusters of one method."""

    def __init__(self, method: str, k: int) -> None:
        super().__init__()
        self.method, self.k = get_method(method), k

    def forward(self, z: Tensor) -> Tensor:
        return labels_of(self.method, z, self.k)


def compiled(module: nn.Module, z: Tensor, folder: Path) -> list[Call]:
    """By the code that inductor generates."""
    torch.compiler.reset()
    return [torch.compile(module, fullgraph=True)]


def exported(module: nn.Module, z: Tensor, folder: Path) -> list[Call]:
    """By ONNX Runtime, and by OpenVINO where that is installed."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = folder / "labels.onnx"
    torch.onnx.export(module, (z,), file, dynamo=True, input_names=["z"], verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    calls: list[Call] = [lambda z: torch.from_numpy(session.run(None, {"z": z.numpy()})[0])]
    if find_spec("openvino") is not None:
        import openvino

        in_float32 = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(file, "CPU", in_float32)
        calls.append(lambda z: torch.from_numpy(model([z.numpy()])[0]))
    return calls


RUNTIMES = {"inductor": compiled, "onnx": exported}


DEFAULT = pytest.param("onnx", "ward", 33, id="onnx-ward-one round", marks=pytest.mark.long)
OTHERS = [
    pytest.param(runtime, method.name, 20, marks=pytest.mark.slow)
    for runtime in RUNTIMES
    for method in methods()
    if method.name != "grid"  # decides nothing by values
]


@pytest.mark.parametrize(("runtime", "method", "k"), [DEFAULT, *OTHERS])
def test_ties_are_decided_as_by_the_operators(
    runtime: str, method: str, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_kernels, "kernels", None)
    with torch.no_grad():
        module = Labels(method, k).eval()
        for call in RUNTIMES[runtime](module, torch.rand(2, N, CHANNELS), tmp_path):
            for kind, z in TOKENS.items():
                assert torch.equal(call(z), module(z)), kind
