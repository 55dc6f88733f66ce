"""`tpcli export`: write a pooled model for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tpcli.config.choices import (
    DEFAULT_SCHEDULE,
    EXPORT_DTYPES,
    EXPORT_FORMATS,
    EXPORT_OUTPUTS,
    LEAST_OPSET,
)
from tpcli.config.outputs import PROGRAM_KIND
from tpcli.config.specs import base_name
from tpcli.errors import UserError
from tpcli.system.files import check_output

from . import render
from .field_options import PoolingGroup
from .groups import DATA_PANEL, ForceOption, JsonOption, ModelArgument, ModelGroup, SourceGroup
from .values import PLACE, SPLIT, choice, one_of, option, whole

CHECKED = 16
"""Images that what was written is run on."""


def export(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    file_format: Annotated[str, choice([*EXPORT_FORMATS], "Format", "--format")] = "onnx",
    output: Annotated[
        str,
        option(
            one_of(EXPORT_OUTPUTS),
            "Output of the program: logits, features (the remaining tokens), or dense (a feature "
            "for each patch).",
        ),
    ] = "logits",
    out: Annotated[
        Path | None, option(PLACE, "File to write.", shown="MODEL.onnx or MODEL.pt2")
    ] = None,
    opset: Annotated[
        int | None,
        option(whole(LEAST_OPSET, 30), f"ONNX opset, {LEAST_OPSET} or later.", shown="torch's own"),
    ] = None,
    dtype: Annotated[
        str,
        choice(
            EXPORT_DTYPES,
            "Type of weights and arithmetic",
            end=". Inputs and outputs stay float32.",
        ),
    ] = "float32",
    source: SourceGroup,
    split: Annotated[
        str, option(SPLIT, "Split of the images that check the export.", panel=DATA_PANEL)
    ] = "validation",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a pooled model to ONNX or torch.export, for any batch size.

    The exported program is run and compared with torch: on 16 images of --data, else on random
    images.

    Examples:
        tpcli export deit_small_patch16_224 --schedule flops:0.6 --out deit.onnx
        tpcli export pooled/ --format torch-export --out pooled.pt2
        tpcli export pooled/ --dtype float16 --data imagenet/
    """
    suffix = EXPORT_FORMATS[file_format]
    out = out or Path(base_name(model) + suffix)
    if out.suffix != suffix:
        raise UserError(f"--out {str(out)!r} needs the suffix {suffix} to hold {file_format}.")
    if opset is not None and file_format != "onnx":
        raise UserError(
            f"--opset {opset} has an effect on ONNX only; leave it out, or use --format onnx."
        )
    check_output(out, force, kind=PROGRAM_KIND)
    pooling.check(model)
    if source.data is not None:
        source.require_for(model, split)

    from tpcli.data import batches
    from tpcli.export import check_export, export_model
    from tpcli.surgery import pooling_spec

    check_export(out, file_format, opset, force)
    loaded = loading.load(model)
    pooling.apply_to(loaded, default_schedule=DEFAULT_SCHEDULE)
    images = None
    if source.data is not None:
        data = source.open_split(loaded, split, CHECKED)
        images = data.normalize(next(iter(batches(data, CHECKED)))[0])
    result = export_model(
        loaded.model,
        out,
        file_format=file_format,
        output=output,
        opset=opset,
        dtype=dtype,
        check_on=images,
        force=force,
    )
    spec = pooling_spec(loaded.model)
    assert spec is not None
    if as_json:
        render.print_json(
            {
                "model": loaded.name,
                "out": str(result.out),
                "format": result.file_format,
                "output": result.output,
                "opset": result.opset,
                "dtype": result.dtype,
                **render.how_pooled(spec),
                "input_size": list(result.input_size),
                "max_error": result.max_error,
                "checked_on": result.checked_on,
            }
        )
        return
    shape = " x ".join(map(str, ("batch", *result.input_size)))
    opset_text = "" if result.opset is None else f", opset {result.opset}"
    checked = (
        "not checked: onnxruntime is not installed (pip install 'tpcli[export]')"
        if result.max_error is None
        else f"largest difference of {result.output} to torch's: {result.max_error:.1e}, "
        f"{result.checked_on}"
    )
    render.print_facts(
        [
            *render.pooled_facts(loaded.name, spec),
            ("saved", f"{result.out} ({result.file_format}{opset_text}, {result.dtype})"),
            ("input", f"images: {shape}, normalised as for the model"),
            ("output", result.output),
            ("check", checked),
        ]
    )
