"""A traced model as an ONNX file, and that file run by ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from tpcli.errors import TpcliError, first_line

LEAST_OPSET = 18
"""The first opset whose ScatterElements can take a minimum, which clustering needs."""


def write_onnx(
    traced: torch.export.ExportedProgram, images: Tensor, path: Path, opset: int | None, output: str
) -> int:
    """Write the program as ONNX, its weights inside the file; the opset.

    Raises:
        TpcliError: it can't be written.
    """
    try:
        program = torch.onnx.export(
            traced,
            (images,),
            input_names=["images"],
            output_names=[output],
            opset_version=opset,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        _optimize(program)
    except Exception as error:
        raise TpcliError(f"the model can't be written as ONNX: {first_line(error)}.") from error
    program.save(str(path))
    return int(program.model.opset_imports[""])


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    """Optimize the graph, constants and duplicates first: its rules look at every pair of nodes."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    common.CommonSubexpressionEliminationPass()(program.model)
    optimizer.remove_unused_nodes(program.model)
    program.optimize()


def run_onnx(path: Path, images: Tensor) -> Tensor | None:
    """The answer of ONNX Runtime on the processor, or None where it is not installed."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": images.cpu().numpy()})
    return torch.from_numpy(answer)


def quantize_onnx(path: Path, out: Path) -> Path:
    """Weights in int8, activations quantized as they come, by ONNX Runtime; `out`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        path, out, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
    )
    return out
