"""Write a pooled model as ONNX or as a torch.export program, and check what was written."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpcli.config.choices import (
    EXPORT,
    EXPORT_DTYPES,
    EXPORT_FORMATS,
    EXPORT_OUTPUTS,
    LEAST_OPSET,
    ONNX,
    Runtime,
    check_choice,
)
from tpcli.errors import TpcliError, UserError, first_line
from tpcli.surgery import find
from tpcli.surgery.geometry import input_size
from tpcli.system.files import MARK, check_output, replacing


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
    program.model.producer_name = MARK
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


LARGEST_ONNX = 2**31
"""Bytes; protobuf can't hold more in one file."""
DTYPES = {name: getattr(torch, name) for name in EXPORT_DTYPES}
TOLERANCE = 1e-4
TOLERANCE_FLOAT16 = 0.02
"""Of the root of the mean square, as a share of that of the answers."""
CHECK_BATCH = 3
"""Images in the check; another number than the two the model is traced with."""


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    file_format: "onnx" or "torch-export". output: what the program answers, one of EXPORT_OUTPUTS.
    opset: of ONNX, None otherwise. input_size: (channels, height, width). dtype: of weights and
    arithmetic. max_error: largest difference to torch's answer in float32 on `checked_on`, None
    where ONNX Runtime is not installed.
    """

    out: Path
    file_format: str
    output: str
    opset: int | None
    input_size: tuple[int, int, int]
    max_error: float | None
    dtype: str = "float32"
    checked_on: str = "random images"


def export_model(
    model: nn.Module,
    out: Path,
    *,
    file_format: str = "onnx",
    output: str = "logits",
    opset: int | None = None,
    dtype: str = "float32",
    check_on: Tensor | None = None,
    force: bool = False,
) -> ExportResult:
    """Export `model` for any batch size and one image size, and hold its answers against torch's.

    The model is exported in eval mode and left as it was; of one that only wraps a Vision
    Transformer (DataParallel, an average), that one. Weights of other types than float32 are
    exported as float32. What was written is run once; a file whose answers differ is not kept.

    Args:
        output: what the program answers: "logits" (one vector of features where the model has no
            head, and called so); "features", the (B, P + K, C) tokens of
            `forward_features`; or "dense", a normalized feature for each patch, (B, C, H, W).
        opset: of ONNX; torch's own choice where left out.
        dtype: "float16" halves the weights; images and answers stay float32, and so does what
            clusters are found by.
        check_on: (B, C, H, W) images, normalized as for the model; 3 random ones where left out.

    Raises:
        UserError: the file exists, the format, output, opset or dtype is unknown, or a package is
            missing.
        TpcliError: the model can't be exported, or its answers differ by more than 1e-4 (in
            float16: on the whole by more than 2%).
    """
    check_export(out, file_format, opset, force)
    check_choice("dtype", dtype, EXPORT_DTYPES)
    check_choice("output", output, EXPORT_OUTPUTS)
    vit = find(model)
    if model is not vit and list(model.children()) == [vit]:  # DataParallel, averages, compiled
        model = vit
    if any(p.is_meta for p in model.parameters()):
        raise UserError(
            "the model's weights are offloaded or were never loaded; remove the hooks that bring "
            "them in (accelerate's remove_hook_from_module) before you export it."
        )
    weights = sum(p.numel() for p in model.parameters()) * DTYPES[dtype].itemsize
    if file_format == "onnx" and weights >= LARGEST_ONNX:
        raise UserError(
            f"the model's weights take {weights / 2**30:.1f} GB, and one ONNX file holds less than "
            "2; use `file_format=torch-export`."
        )
    size = input_size(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECK_BATCH, *size, generator=generator)
    images = (images if check_on is None else check_on).to(device, torch.float32)
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).float()  # what the file computes in, and is compared in
    vit = find(model)
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = getattr(vit, "grad_checkpointing", False)
    model.eval()
    vit.grad_checkpointing = False  # type: ignore[assignment]
    try:
        with torch.no_grad(), warnings.catch_warnings(), replacing(out) as fresh:
            warnings.simplefilter("ignore")
            program = model if output == "logits" else _Features(vit, output)
            if output == "logits" and model is vit and not vit.num_classes:
                output = "features"  # what it answers without a head
            expected = program(images)
            if dtype != "float32":
                program = _Cast(program, DTYPES[dtype])
            sample = images[:2] if len(images) > 1 else torch.cat([images, images])
            traced = trace_program(program, sample)
            if file_format == "onnx":
                opset = write_onnx(traced, sample, fresh, opset, output)
                got = run_onnx(fresh, images)
            else:
                file = io.BytesIO()  # on a full disk torch would end the process
                torch.export.save(traced, file, extra_files={MARK: ""})
                fresh.write_bytes(file.getbuffer())
                got = torch.export.load(fresh).module()(images)
            error = None if got is None else _difference(got.to(expected), expected, dtype)
            if isinstance(error, str):
                raise TpcliError(
                    f"the exported model's {output} differ from torch's by {error}, so {out} was "
                    "not written; please report the model."
                )
    finally:
        for module, training in modes:
            module.training = training
        vit.grad_checkpointing = checkpointing  # type: ignore[assignment]
    on = "random images" if check_on is None else f"{len(images)} images"
    return ExportResult(out, file_format, output, opset, size, error, dtype, on)


def _difference(got: Tensor, expected: Tensor, dtype: str) -> float | str:
    """The largest difference; in words where it is too large for the dtype."""
    apart = (got - expected).float()
    largest = float(apart.abs().max())
    if dtype == "float32":
        return largest if largest <= TOLERANCE else f"{largest:.2g}, more than {TOLERANCE:g}"
    share = float(apart.square().mean().sqrt() / expected.float().square().mean().sqrt())
    if share <= TOLERANCE_FLOAT16:
        return largest
    return f"{100 * share:.2g}% on the whole, more than {100 * TOLERANCE_FLOAT16:g}%"


class _Features(nn.Module):
    """A model that answers with features: those of all tokens, or `dense` ones of all patches."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model: Any = model
        self.is_dense = output == "dense"

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = (
            self.model.forward_intermediates(images, 1, norm=True, intermediates_only=True)[0]
            if self.is_dense
            else self.model.forward_features(images)
        )
        return features


class _Cast(nn.Module):
    """A copy of a model in another type, whose images and answers stay float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.model(images.to(self.dtype))
        return answer.float()


def check_export(
    out: Path, file_format: str, opset: int | None = None, force: bool = False
) -> None:
    """Fail now if `export_model` could not write `out` later.

    Raises:
        UserError: as `export_model`.
    """
    check_choice("format", file_format, EXPORT_FORMATS)
    if opset is not None and (file_format != "onnx" or opset < LEAST_OPSET):
        raise UserError(
            f"opset {opset} can't be used; it is for ONNX alone, and at least {LEAST_OPSET}."
        )
    if out.suffix != EXPORT_FORMATS[file_format]:
        raise UserError(
            f"{out} needs the suffix {EXPORT_FORMATS[file_format]} to hold {file_format}."
        )
    check_output(out, force)
    missing = Runtime("export to ONNX", ONNX, EXPORT).missing
    if file_format == "onnx" and missing:
        raise UserError(f"{missing}.")
    if opset is not None:
        from onnx.defs import onnx_opset_version

        if opset > (newest := onnx_opset_version()):
            raise UserError(
                f"opset {opset} is newer than the installed onnx has; use {LEAST_OPSET} to "
                f"{newest}."
            )


def trace_program(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The model as a program of operators, for any batch size.

    Raises:
        TpcliError: torch.export can't trace it.
    """
    try:
        return torch.export.export(
            model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    except Exception as error:
        raise TpcliError(f"torch.export can't trace the model: {first_line(error)}.") from error
