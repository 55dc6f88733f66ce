"""The same logits from ONNX Runtime, a torch.export program and torch.compile."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import tpcli
from tests.helpers import architectures as zoo
from tests.helpers.cli import Run
from tests.helpers.images import class_folders
from tpcli import export as exporting
from tpcli.errors import TpcliError, UserError
from tpcli.export import export_model

KINDS = {
    "deit": "deit_tiny_patch16_224",
    "distilled": "deit_tiny_distilled_patch16_224",
    "registers and average": "vit_base_patch16_reg4_gap_256",
    "rotary": "vit_small_patch16_rope_224",
    "attention pool": "vit_base_patch16_siglip_224",
}
OTHERS = sorted({*KINDS} - {"deit", "rotary"})
METHODS = ("k-medoids", "k-means", "ward")
CASES = [
    pytest.param(kind, method, marks=[] if kind == "deit" or method == "ward" else pytest.mark.slow)
    for kind in KINDS
    for method in METHODS
]
"""Every kind of model, and every method; the other pairs are `slow`."""
TOLERANCE = 1e-4


def pooled(kind: str, method: str, **kwargs: Any) -> nn.Module:
    model = zoo.small(KINDS[kind], depth=2, **kwargs)
    return tpcli.pool(model, [20, 9], method)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_torch_export(tmp_path: Path, kind: str, method: str) -> None:
    result = export_model(pooled(kind, method), tmp_path / "m.pt2", file_format="torch-export")
    assert result.max_error is not None
    assert result.max_error <= TOLERANCE


@pytest.mark.long
def test_float16(tmp_path: Path) -> None:
    """Half the weights; images and answers stay float32, and the model as it was."""
    model = tpcli.pool(zoo.small(KINDS["deit"], depth=1), [20], "tome")
    sizes = []
    for dtype in ("float32", "float16"):
        out = tmp_path / f"{dtype}.pt2"
        result = export_model(model, out, file_format="torch-export", dtype=dtype)
        assert (result.dtype, result.checked_on) == (dtype, "random images")
        sizes.append(out.stat().st_size)
    assert sizes[0] - sizes[1] > 1.7 * sum(p.numel() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    x = zoo.images(model, 5)
    with torch.no_grad():
        got = torch.export.load(out).module()(x)
        expected = model(x)
    assert got.dtype == torch.float32
    assert 0 < float((got - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_float16_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE_FLOAT16", 0.0)
    model = zoo.small(KINDS["deit"], depth=1)
    with pytest.raises(TpcliError, match=r"0\.\d+%"):
        export_model(model, tmp_path / "m.pt2", file_format="torch-export", dtype="float16")


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_float16_in_onnx_runtime(tmp_path: Path, method: str) -> None:
    pytest.importorskip("onnxruntime")
    result = export_model(pooled("deit", method), tmp_path / "m.onnx", dtype="float16")
    assert result.max_error is not None
    assert 0 < result.max_error < 0.1


@pytest.mark.long
def test_dynamic_quantization_by_onnx_runtime(tmp_path: Path) -> None:
    """The recipe of docs/export.md: weights of a byte each, nearly the same logits."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = pooled("deit", "ward")
    export_model(model, tmp_path / "m.onnx")
    quantize_dynamic(
        tmp_path / "m.onnx",
        tmp_path / "int8.onnx",
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    x = zoo.images(model, 5)
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    with torch.no_grad():
        expected = model(x)
    apart = (torch.from_numpy(logits) - expected).square().mean().sqrt()
    assert float(apart) < 0.1 * float(expected.square().mean().sqrt())
    before, after = (matrices(tmp_path / name) for name in ("m.onnx", "int8.onnx"))
    assert after["INT8"] > 0.9 * before["FLOAT"]
    assert after["FLOAT"] < 0.1 * before["FLOAT"]


def matrices(path: Path) -> Counter[str]:
    """How many numbers of each type stand in the matrices of a program."""
    import onnx

    found: Counter[str] = Counter()
    for tensor in onnx.load(path).graph.initializer:
        if len(tensor.dims) == 2:
            found[onnx.TensorProto.DataType.Name(tensor.data_type)] += math.prod(tensor.dims)
    return found


@pytest.mark.long
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_onnx_runtime(tmp_path: Path, kind: str, method: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = pooled(kind, method)
    result = export_model(model, tmp_path / "m.onnx")
    assert result.max_error is not None
    assert result.max_error <= TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = zoo.images(model, batch)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(x), atol=TOLERANCE, rtol=0)
    assert not racing(tmp_path / "m.onnx")


def racing(path: Path) -> list[str]:
    """Nodes that add to one row from several threads of ONNX Runtime (its issue 18048)."""
    import onnx

    return [
        node.name
        for node in onnx.load(path).graph.node
        if node.op_type == "ScatterND" and any(a.s == b"add" for a in node.attribute)
    ]


@pytest.mark.long
@pytest.mark.parametrize("output", ["features", "dense"])
@pytest.mark.parametrize("kind", ["deit", "rotary"])
def test_features(tmp_path: Path, kind: str, output: str) -> None:
    model = tpcli.pool(zoo.small(KINDS[kind], depth=2), [20, 9], "top-k")
    out = tmp_path / "m.pt2"
    assert export_model(model, out, file_format="torch-export", output=output).output == output
    x = zoo.images(model, 5)
    with torch.no_grad():
        got = torch.export.load(out).module()(x)
    assert got.shape == ((5, 1 + 9, 96) if output == "features" else (5, 96, 6, 6))


def test_an_unknown_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dens"):
        export_model(nn.Module(), tmp_path / "m.pt2", file_format="torch-export", output="dens")


@pytest.mark.long
@pytest.mark.parametrize("output", ["features", "dense"])
def test_features_in_onnx_runtime(tmp_path: Path, output: str) -> None:
    pytest.importorskip("onnxruntime")
    result = export_model(pooled("deit", "ward"), tmp_path / "m.onnx", output=output)
    assert result.max_error is not None
    assert result.max_error <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize(("kind", "method"), CASES)
def test_torch_compile_without_graph_breaks(kind: str, method: str) -> None:
    model = pooled(kind, method)
    x = zoo.images(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), atol=TOLERANCE, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", ["deit", "rotary", *(pytest.param(k, marks=pytest.mark.slow) for k in OTHERS)]
)
def test_torch_compile_with_inductor(kind: str) -> None:
    model = pooled(kind, "k-medoids")
    x = zoo.images(model)
    torch.compiler.reset()
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(x)
        torch.testing.assert_close(out, model(x), atol=TOLERANCE, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_are_exported_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tpcli.pool(zoo.small(KINDS["deit"], depth=1), [20], "tome").to(dtype)
    result = export_model(model, tmp_path / "m.pt2", file_format="torch-export")
    assert result.max_error is not None
    assert result.max_error <= TOLERANCE
    assert {p.dtype for p in model.parameters()} == {dtype}
    x = zoo.images(model, 4)
    got = torch.export.load(tmp_path / "m.pt2").module()(x)
    with torch.no_grad():
        torch.testing.assert_close(got, model.float()(x), atol=TOLERANCE, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_in_onnx(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tpcli.pool(zoo.small(KINDS["deit"], depth=1), [20], "tome").to(dtype)
    for kind in ("float32", "float16"):
        result = export_model(model, tmp_path / f"{kind}.onnx", dtype=kind)
        assert result.max_error is not None


@pytest.mark.long
def test_what_only_wraps_a_model_is_exported_as_it(tmp_path: Path) -> None:
    model = tpcli.pool(zoo.small(KINDS["deit"], depth=1), [20], "tome")
    export_model(nn.DataParallel(model), tmp_path / "m.pt2", file_format="torch-export")
    around = nn.Sequential(model, nn.Linear(7, 2)).eval()
    export_model(around, tmp_path / "around.pt2", file_format="torch-export")
    x = zoo.images(model, 4)
    for name, one in (("m", model), ("around", around)):
        got = torch.export.load(tmp_path / f"{name}.pt2").module()(x)
        with torch.no_grad():
            torch.testing.assert_close(got, one(x), atol=TOLERANCE, rtol=0)


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="no limits of file sizes there")
def test_a_full_disk_ends_in_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own, with a limit on files: torch's own writer would end it (134)."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16));"
        "sys.argv = ['tpcli', 'export', '--format', 'torch-export', '--out', 'm.pt2'];"
        "from tpcli.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(TpcliError, match="logits"):
        export_model(
            zoo.small(KINDS["deit"], depth=1), tmp_path / "m.pt2", file_format="torch-export"
        )
    assert list(tmp_path.iterdir()) == []


def test_any_image_size_is_refused_at_once() -> None:
    """Tracing would take minutes, and the program would take the one size all the same."""
    model = tpcli.pool(zoo.small(KINDS["deit"], depth=1, dynamic_img_size=True), [9], "tome")
    rows, columns = (8 * Dim(name, min=4, max=16) for name in ("rows", "columns"))
    shapes = ({0: Dim("batch"), 2: rows, 3: columns},)
    with pytest.raises(UserError, match="size"):
        torch.export.export(model, (zoo.images(model),), dynamic_shapes=shapes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.onnx", {"file_format": "tflite"}, "tflite"),
        ("m.onnx", {"opset": 17}, "opset 17"),
        ("m.onnx", {"opset": 999}, "opset 999"),
        ("m.pt2", {"file_format": "torch-export", "opset": 20}, "opset 20"),
        ("m.onnx", {"dtype": "int8"}, "int8"),
        ("m.pt", {}, r"m\.pt"),
        ("old.onnx", {}, r"old\.onnx"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "old.onnx").write_text("mine")
    with pytest.raises(UserError, match=message):
        export_model(pooled("deit", "ward"), tmp_path / name, **options)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpcli.config.choices.find_spec", lambda name: None)
    with pytest.raises(UserError, match="onnxscript"):
        export_model(pooled("deit", "ward"), tmp_path / "m.onnx")


@pytest.mark.long
def test_the_command(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "m.pt2"
    small = "img_size=48 patch_size=8 embed_dim=48 num_heads=2 depth=1".split()
    arguments = ["export", KINDS["deit"], "--no-pretrained", "--schedule", "keep:0.5@0"]
    arguments += [part for item in small for part in ("--model-kwargs", item)]
    photos = class_folders(tmp_path / "photos", per_class=1)
    more = ("--data", photos, "--format", "torch-export", "--out", out, "--json")
    document = run(*arguments, *more).document
    assert document["checked_on"] == "10 images"
    assert document["tokens"] == [18]
    assert document["max_error"] <= TOLERANCE
    assert document["input_size"] == [3, 48, 48]
    program = torch.export.load(out)
    assert program.module()(torch.zeros(4, 3, 48, 48)).shape == (4, 1000)
