"""The real model, pooled, gives the same logits in every form and runtime on real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tpcli import load, pool
from tpcli.data import batches, create
from tpcli.export import export_model
from tpcli.pooling.backends import c as c_kernels

from .test_accuracy import DATA, MODEL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"the real model is not there: {MODEL}"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real images are not there: {DATA}"),
]

IMAGES, BATCH = 512, 64
TOLERANCE = 1e-3
Call = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    """Batches of real images, normalized."""
    data = create(str(DATA), load(str(MODEL)).data_config, limit=IMAGES)
    return [data.normalize(batch) for batch, _ in batches(data, BATCH)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return pool(load(str(MODEL)).model.eval(), "flops:0.6")


@pytest.fixture(scope="module")
def expected(model: nn.Module, images: list[Tensor]) -> Tensor:
    """Logits by torch's operators in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c_kernels, "kernels", None)
        return logits(model, images)


@pytest.fixture(scope="module")
def onnx(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    return export_model(model, tmp_path_factory.mktemp("onnx") / "pooled.onnx").out


def logits(call: Call, images: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([call(batch) for batch in images])


def differing(found: Tensor, expected: Tensor) -> int:
    """Images of which some logit differs by more than the tolerance."""
    assert len(expected) == IMAGES
    return int(((found - expected).abs().amax(1) > TOLERANCE).sum())


@pytest.mark.skipif(c_kernels.kernels is None, reason="the kernels were not compiled")
def test_compiled_loops(model: nn.Module, images: list[Tensor], expected: Tensor) -> None:
    assert differing(logits(model, images), expected) == 0


def test_onnx_runtime(onnx: Path, images: list[Tensor], expected: Tensor) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])

    def call(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])

    assert differing(logits(call, images), expected) == 0


def test_openvino(onnx: Path, images: list[Tensor], expected: Tensor) -> None:
    openvino = pytest.importorskip("openvino")
    in_float32 = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(onnx, "CPU", in_float32)

    def call(batch: Tensor) -> Tensor:
        return torch.from_numpy(compiled([batch.numpy()])[0].copy())

    assert differing(logits(call, images), expected) == 0


def test_torch_compile(model: nn.Module, images: list[Tensor], expected: Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert differing(logits(compiled, images), expected) == 0
