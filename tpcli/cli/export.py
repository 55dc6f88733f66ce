"""`tpcli export`: a pooled model for other runtimes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tpcli.cli.options import (
    ForceOption,
    JsonOption,
    ModelArgument,
    ModelGroup,
    PoolingGroup,
)
from tpcli.cli.spread import spread


class Format(str, Enum):
    """What is written."""

    onnx = "onnx"
    torch_export = "torch-export"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(spread(export))


def export(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    file_format: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.onnx,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="MODEL.onnx or MODEL.pt2")
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Opset of ONNX, 18 or more.", show_default="torch's own")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a pooled model as ONNX or as a torch.export program, for any batch size.

    Example: tpcli export deit_small_patch16_224 --schedule flops:0.6 --out deit.onnx
    """
    from tpcli.cli import render
    from tpcli.exporting import FORMATS, check_export, export_model
    from tpcli.models import base_name
    from tpcli.surgery import pooling_spec

    render.quiet()
    out = out or Path(base_name(model) + FORMATS[file_format.value])
    check_export(out, file_format.value, opset, force)
    loaded = loading.load(model)
    pooling.apply_to(loaded, default_schedule="flops:0.6")
    result = export_model(
        loaded.model, out, file_format=file_format.value, opset=opset, force=force
    )
    spec = pooling_spec(loaded.model)
    assert spec is not None
    if as_json:
        render.print_json(
            {
                "model": loaded.name,
                "out": str(result.out),
                "format": result.file_format,
                "opset": result.opset,
                "schedule": spec.schedule.name,
                "tokens": list(spec.schedule.tokens),
                "method": spec.options.to_dict(),
                "input_size": list(result.input_size),
                "max_error": result.max_error,
            }
        )
        return
    shape = " x ".join(map(str, ("batch", *result.input_size)))
    opset_text = "" if result.opset is None else f", opset {result.opset}"
    checked = (
        "not checked: onnxruntime is not installed (pip install 'tpcli[export]')"
        if result.max_error is None
        else f"largest difference of logits to torch's: {result.max_error:.1e}"
    )
    render.print_facts(
        [
            ("model", f"{loaded.name}, pooled by {spec.options.method}"),
            ("schedule", f"{spec.schedule.name}: {', '.join(map(str, spec.schedule.tokens))}"),
            ("saved", f"{result.out} ({result.file_format}{opset_text})"),
            ("input", f"images: {shape}, normalised as for the model"),
            ("check", checked),
        ]
    )
