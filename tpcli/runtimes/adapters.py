"""A model made ready in a runtime: a call from images to answers, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpcli.exporting import export_model
from tpcli.onnx_file import quantize_onnx

Call = Callable[[Tensor], Tensor]


def prepare(runtime: str, model: nn.Module, images: Tensor, threads: int, folder: Path) -> Call:
    """`model` in a runtime of `RUNTIMES`.

    images: (B, C, H, W) of the size that it will be called with. folder: for what is written; an
    ONNX file that is there is used again.

    Raises:
        TpcliError: the model can't be exported.
    """
    if runtime == "torch":
        return model
    if runtime == "aoti":
        return _aoti(model, images, folder)
    path = folder / "model.onnx"
    if not path.exists():
        export_model(model, path)
    if runtime == "openvino":
        return _openvino(path, threads)
    if runtime == "onnxruntime-int8":
        path = quantize_onnx(path, folder / "int8.onnx")
    return _onnxruntime(path, threads)


def _onnxruntime(path: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return call


def _openvino(path: Path, threads: int) -> Call:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled: Any = openvino.Core().compile_model(str(path), "CPU", options)

    def call(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled([images.numpy()])[0])

    return call


def _aoti(model: nn.Module, images: Tensor, folder: Path) -> Call:
    """Compiled for images of exactly this shape, in torch's own threads."""
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(folder / "model.pt2")
        )
    call: Call = torch._inductor.aoti_load_package(package)
    return call
