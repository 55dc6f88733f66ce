"""Every kernel compiled to machine code for cards that need not be there."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.helpers.recorded_launches import Recorded, launches
from tpcli.pooling.backends import triton as triton_backend
from tpcli.pooling.backends.triton import launch
from tpcli.pooling.ward import candidate_count, merges_per_round

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
MODELS = {"DeiT-S": (196, 384), "ViT-L": (577, 1024), "DINOv2 at 896 pixels": (4096, 768)}
SHARED_MEMORY = 96 * 1024


def all_launches(n: int, channels: int, dtype: torch.dtype) -> list[Recorded]:
    """Those of poolings in one round and in two, with a sketch and without, and every reduce."""
    x = torch.empty(2, n + 1, channels, device="meta", dtype=dtype)
    weights = torch.empty(2, n, device="meta")
    labels = torch.empty(2, n, device="meta", dtype=torch.int64)
    few, half = n - n // 15, n // 2
    calls: list[Any] = [
        partial(launch.ward, x[:, 1:], weights, count, merges_per_round(n, k, rounds), normalized)
        for k, rounds in ((few, 0), (few, 2), (half, 0))
        for count in {n, candidate_count(n, k)}
        for normalized in (False, True)
    ]
    parts = launch._empty_parts(labels, few)
    one = launch._empty_parts(labels.repeat(1, 2), 1)
    for kept, tokens in ((parts, x), (one, x.repeat(1, 2, 1)[:, 1:])):
        mass = torch.empty(2, tokens.shape[1] - 1, device="meta")
        calls += [partial(launch.means, tokens, kept, mass, mass, 1, length) for length in range(3)]
    calls += [partial(launch.number, labels, few, leads) for leads in (None, labels > 0)]
    return [made for call in calls for made in launches(call)]


def source_of(made: Recorded) -> ASTSource:
    """What Triton would compile at such a launch: whole multiples of 16 are told it."""
    kernel, sizes = made.launch.kernel, made.launch.sizes
    names = kernel.arg_names
    signature, told = dict.fromkeys(sizes, "constexpr"), {}
    for i, (name, value) in enumerate(zip(names, made.launch.arguments, strict=False)):
        aligned, dtype = True, made.dtype_of(value)
        if dtype is not None:
            signature[name] = f"*{TYPES[dtype]}"
        elif isinstance(value, float):
            signature[name], aligned = "fp32", False
        else:
            signature[name] = "i32"
            aligned = value % 16 == 0 and not kernel.params[i].do_not_specialize
        if aligned:
            told[(i,)] = [["tt.divisibility", 16]]
    constants = {(names.index(name),): value for name, value in sizes.items()}
    return ASTSource(kernel, signature, constexprs=constants, attrs=told)


def spilled_bytes(assembly: str, folder: Path) -> int:
    """What NVIDIA's assembler says does not fit into registers."""
    path, target = folder / "kernel.ptx", re.search(r"\.target (sm_\w+)", assembly)
    assert target is not None
    path.write_text(assembly)
    command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={target[1]}", path, "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spills, done.stderr
    return sum(map(int, spills))


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "model", "dtype"),
    [
        (90, "DeiT-S", torch.bfloat16),
        (90, "DeiT-S", torch.float32),
        (90, "ViT-L", torch.bfloat16),
        (90, "DINOv2 at 896 pixels", torch.bfloat16),
        (80, "DeiT-S", torch.float16),
        (80, "ViT-L", torch.bfloat16),
        (80, "ViT-L", torch.float32),
        (80, "DINOv2 at 896 pixels", torch.float32),
        (75, "DeiT-S", torch.float16),
        (75, "ViT-L", torch.float32),
    ],
)
def test_every_kernel_fits_the_card(
    capability: int,
    model: str,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    precision = "tf32x3" if capability >= 80 else None
    monkeypatch.setattr(launch, "precision_on", lambda device: precision)
    seen, names = set(), set()
    for made in all_launches(*MODELS[model], dtype):
        source = source_of(made)
        if source.hash() in seen:
            continue
        seen.add(source.hash())
        names.add(made.name)
        options = {"num_warps": made.launch.warps, "num_stages": made.launch.stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.metadata.shared < SHARED_MEMORY, made.name
        assert spilled_bytes(compiled.asm["ptx"], tmp_path) == 0, (made.name, made.launch.sizes)
    assert names == {name for names in triton_backend.KERNELS.values() for name in names}
