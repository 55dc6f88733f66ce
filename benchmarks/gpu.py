"""What pooling costs and brings on a GPU: kernels, whole forwards, attention, schedules.

    python benchmarks/gpu.py --out gpu.jsonl

Random weights and images, no network. Each row is written as it is done, the most telling ones
first; after `--minutes` no new one is begun, and a later run goes on where this one stopped. Prints
Markdown, from all rows of the file. `--smoke` runs through on a CPU, with small models, to see that
the script works; its numbers say nothing. `--host` needs no GPU either: it times what the launching
core does for one pooling, with launches that do nothing.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tpcli import pool
from tpcli.bench.compare import cut, peak_memory
from tpcli.config.options import pooling_options
from tpcli.pooling import Clusters, get_method, merge_tokens
from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import triton
from tpcli.pooling.clusters import merge_by_operators
from tpcli.pooling.ward import candidate_count, merges_per_round, ward_by_operators

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
MODELS = {
    "DeiT-S": "deit_small_patch16_224",
    "ViT-B": "vit_base_patch16_224",
    "ViT-L": "vit_large_patch16_224",
}
VERSIONS = ("base", "ideal", "ward", "tome")
MODES = ("CUDA graph", "eager", "compile")
SCHEDULES = ("flops:0.6", "flops:0.6/constant", "flops:0.6@3,6,9", "flops:0.6@2,5,8", "flops:0.6@4")
ROUTES = ("no sizes", "mask", "extra channel")
SMOKE = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3}

Numbers = dict[str, Any]


class Case(NamedTuple):
    """A row to be measured; `kind` says which function does it."""

    kind: str
    model: str
    dtype: str
    batch: int
    mode: str = ""
    version: str = ""
    schedule: str = ""


class Machine(NamedTuple):
    """Where it runs, how long a row is measured, and whether only to see that it works."""

    device: torch.device
    seconds: float
    smoke: bool


def plan(smoke: bool) -> list[Case]:
    """All rows, the most telling ones first."""
    every = "r:3" if smoke else "r:13"
    batches = (2, 1) if smoke else (256, 32, 1)
    spots = ("r:2", "flops:0.9@1") if smoke else SCHEDULES
    modes = ("eager",) if smoke else MODES
    cases = [Case("parity", "DeiT-S", dtype, 8) for dtype in DTYPES]

    def forwards(model: str, dtype: str, modes: tuple[str, ...]) -> Iterator[Case]:
        for mode, batch, version in itertools.product(modes, batches, VERSIONS):
            yield Case("forward", model, dtype, batch, mode, version, every)

    cases += forwards("DeiT-S", "bfloat16", modes[:2])
    cases += [Case("attention", "", "bfloat16", batches[0], "", route) for route in ROUTES]
    for batch, spot in itertools.product(batches, spots):
        cases.append(Case("forward", "DeiT-S", "bfloat16", batch, modes[0], "ward", spot))
    for model, dtype in itertools.product(MODELS, DTYPES):
        cases += forwards(model, dtype, modes[:2])
    for model, dtype in itertools.product(MODELS, DTYPES):
        cases += forwards(model, dtype, modes[2:])
    return list(dict.fromkeys(cases))


@cache
def base_model(name: str, smoke: bool) -> nn.Module:
    """Random weights, in eval mode."""
    torch.manual_seed(0)
    return timm.create_model(MODELS[name], **(SMOKE if smoke else {})).eval()


@cache
def pooled_model(name: str, version: str, schedule: str, smoke: bool) -> nn.Module:
    """That version of a model; a budget's tokens are solved once."""
    model = copy.deepcopy(base_model(name, smoke))
    if version == "base":
        return model
    pooled = pool(model, schedule, pooling_options("ward" if version == "ideal" else version))
    return cut(pooled) if version == "ideal" else pooled


def measure_forward(case: Case, machine: Machine) -> Numbers:
    """Milliseconds of a forward; launches and peak memory where it runs eagerly."""
    size = 32 if machine.smoke else 224
    model = copy.deepcopy(pooled_model(case.model, case.version, case.schedule, machine.smoke))
    model = model.to(machine.device, DTYPES[case.dtype])
    images = torch.randn(case.batch, 3, size, size, device=machine.device, dtype=DTYPES[case.dtype])
    call: Callable[[], Any] = partial(model, images)
    began = time.perf_counter()
    if case.mode == "compile":
        call = partial(torch.compile(model), images)
    for _ in range(3):
        call()
    synchronize(machine.device)
    numbers: Numbers = {"warm_up_s": time.perf_counter() - began}
    if case.mode == "eager":
        numbers["launches"] = count_launches(call, machine.device)
        numbers["peak_mib"] = (peak_memory(call, machine.device) or 0) / 2**20
    if case.mode == "CUDA graph":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        call = graph.replay
    return {"ms": milliseconds(call, machine), **numbers}


def measure_attention(case: Case, machine: Machine) -> Numbers:
    """The three routes of log(size), at DeiT-S's 6 heads of 64 and 145 tokens."""
    heads, n, dim = 6, 145, 64
    options: Any = {"device": machine.device, "dtype": DTYPES[case.dtype]}
    q, k, v = (torch.randn(case.batch, heads, n, dim, **options) for _ in range(3))
    logs = torch.rand(case.batch, n, **options)
    if case.version == "mask":
        room = torch.zeros(case.batch, 1, 1, -(-n // 8) * 8, **options)  # rows padded to 16 bytes
        room[..., :n] = logs[:, None, None]
        call = partial(F.scaled_dot_product_attention, q, k, v, attn_mask=room[..., :n])
    elif case.version == "extra channel":

        def call() -> Tensor:
            zeros = q.new_zeros(1, 1, 1, 1).expand(case.batch, heads, n, 7)
            scale = dim**-0.5
            more = logs[:, None, :, None].expand(-1, heads, -1, -1) / scale
            wide_q = torch.cat([q, torch.ones_like(more), zeros], -1)
            wide_k = torch.cat([k, more, zeros], -1)
            wide_v = torch.cat([v, zeros, zeros[..., :1]], -1)
            out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=scale)
            return out[..., :dim]

    else:
        call = partial(F.scaled_dot_product_attention, q, k, v)
    for _ in range(3):
        call()
    return {"ms": milliseconds(call, machine)}


def measure_parity(case: Case, machine: Machine) -> Numbers:
    """The share of samples in which kernels and operators in float64 make the same clusters."""
    n, k, channels = (64, 58, 48) if machine.smoke else (196, 183, 384)
    z = torch.randn(case.batch, n, channels, device=machine.device)
    z = (z + 2 * z[:, torch.arange(n) // 3]).to(DTYPES[case.dtype])
    ones = torch.ones(case.batch, n, device=machine.device)
    same, plan_of = [], merges_per_round(n, k, 0)
    for count in (n, candidate_count(n, k)):
        found = triton.ward_labels(z, ones, count, plan_of, True)
        if found is None:
            return {"same": None, "note": "no kernels here"}
        expected = ward_by_operators(z.double(), ones.double(), count, plan_of, True)
        same_cluster = [labels[:, :, None] == labels[:, None] for labels in (found[0], expected)]
        same.append((same_cluster[0] == same_cluster[1]).flatten(1).all(1).float().mean().item())
    clusters = Clusters(*found[1])
    errors = []
    for length in range(3):
        merged = triton.means(z, clusters, ones, ones, 0, length)
        assert merged is not None
        wanted, _ = merge_by_operators(z.float(), clusters, ones, ones, 0, length)
        errors.append((merged[0].float() - wanted).abs().max().item())
    return {"same": min(same), "error": max(errors)}


MEASURES = {
    "forward": measure_forward,
    "attention": measure_attention,
    "parity": measure_parity,
}


def milliseconds(call: Callable[[], Any], machine: Machine) -> float:
    """Median over calls, the device waited for after each."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < machine.seconds:
        synchronize(machine.device)
        start = time.perf_counter()
        call()
        synchronize(machine.device)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def count_launches(call: Callable[[], Any], device: torch.device) -> int | None:
    """What the device was given to do, by the profiler; None on the CPU."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        synchronize(device)
    return sum(event.device_type.name == "CUDA" for event in profiler.events())


class NoGPU:
    """What Triton asks of a driver, answered for an H100; kernels are compiled and never run."""

    def __init__(self) -> None:
        self.utils = self
        self.launches = 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def start(*arguments: Any) -> None:
            self.launches += 1

        return start

    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, *arguments: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def host_cost() -> Iterator[str]:
    """Markdown: microseconds of the launching core for one pooling of `ward`, DeiT-S in bfloat16.

    Tensors lie on the CPU, whose allocations are somewhat cheaper than a GPU's.
    """
    from triton.runtime import driver

    driver.set_active(nothing := NoGPU())
    cpu = torch.device("cpu")
    triton.DEVICES, c_kernels.kernels = ("cpu",), None
    triton._checked.add(cpu)  # results are never written, so there is nothing to check
    ward = get_method("ward")
    yield "| tokens | kernels | microseconds a pooling |\n| --- | ---: | ---: |"
    for n, k in ((196, 183), (144, 131), (196, 98)):
        x, sizes = torch.randn(8, n + 1, 384).bfloat16(), torch.ones(8, n)

        def pooling(x: Tensor = x, sizes: Tensor = sizes, k: int = k) -> None:
            found = ward(x[:, 1:], k, weights=sizes, iterations=0, normalized=True)
            given = {"prefix": 1, "keep_norms": True, "clusters": found.clusters}
            merge_tokens(x, found.labels, k, sizes, sizes, numbered=False, **given)

        for _ in range(20):
            pooling()
        before = nothing.launches
        pooling()
        launches = nothing.launches - before
        ms = milliseconds(pooling, Machine(cpu, 2.0, False))
        yield f"| {n} to {k} | {launches} | {1000 * ms:.1f} |"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: list[tuple[Case, Numbers]]) -> Iterator[str]:
    """Markdown of all rows; times of versions also as multiples of the base's speed."""
    base = {case._replace(version="", schedule=""): n for case, n in rows if case.version == "base"}
    yield "| what | model | type | batch | mode | version | schedule | ms | times base | more |"
    yield "| --- | --- | --- | ---: | --- | --- | --- | ---: | ---: | --- |"
    for case, numbers in rows:
        plain = base.get(case._replace(version="", schedule=""), {}).get("ms")
        ms = numbers.get("ms")
        ratio = f"{plain / ms:.2f}" if plain and ms else ""
        rest = (
            f"{k} {v:.4g}" for k, v in numbers.items() if k != "ms" and isinstance(v, int | float)
        )
        said = ", ".join([*rest, *filter(None, [numbers.get("failed"), numbers.get("note")])])
        kind, model, dtype, batch, mode, version, schedule = case
        cells = [kind, model, dtype, batch, mode, version, f"`{schedule}`" if schedule else ""]
        yield (
            "| "
            + " | ".join([*map(str, cells), "" if ms is None else f"{ms:.3f}", ratio, said])
            + " |"
        )


def main() -> None:
    """Measure what is missing in the file, and print all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--host", action="store_true")
    arguments = parser.parse_args()
    if arguments.host:
        with torch.inference_mode():
            print("\n".join(host_cost()))
        return
    if not arguments.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --smoke runs through on the CPU")
    began = time.perf_counter()
    device = torch.device("cpu" if arguments.smoke else "cuda")
    machine = Machine(device, 0.0 if arguments.smoke else 0.25, arguments.smoke)
    rows: list[tuple[Case, Numbers]] = []
    if arguments.out.exists():
        lines = map(json.loads, arguments.out.read_text().splitlines())
        rows = [(Case(**line["case"]), line["numbers"]) for line in lines]
    done = {case for case, _ in rows}
    with arguments.out.open("a") as file, torch.inference_mode():
        for case in plan(arguments.smoke):
            if case in done or time.perf_counter() - began > 60 * arguments.minutes:
                continue
            try:
                numbers = MEASURES[case.kind](case, machine)
            except Exception as error:  # one row less
                numbers = {"failed": " ".join(str(error).split())[:80]}
            rows.append((case, numbers))
            print(json.dumps({"case": case._asdict(), "numbers": numbers}), file=file, flush=True)
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU", end=", ")
    print(f"torch {torch.__version__}, timm {timm.__version__}, random weights\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
