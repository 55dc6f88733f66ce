"""A model with and without pooling in several runtimes: checked against torch, timed in turn."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tpcli.config.choices import RUNTIMES, check_choice
from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule
from tpcli.errors import UserError
from tpcli.export import export_model, quantize_onnx
from tpcli.schedules.resolve import pool
from tpcli.surgery import pooling_spec, unpool

from .clock import (
    BenchOptions,
    Timing,
    cpu_threads,
    interleaved,
    random_images,
    timing,
    timing_setup,
)

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


@dataclass(frozen=True)
class RuntimeResult:
    """A pooled model against its base in one runtime.

    speedup: median of the ratio to the base's forward timed in the same round. max_difference,
    base_max_difference: largest difference of an answer to torch's. prepared_in: seconds that
    exporting and compiling the pooled model took.
    """

    runtime: str
    method: str
    schedule: str
    batch_size: int
    threads: int
    pooled: Timing
    base: Timing
    speedup: float
    max_difference: float
    base_max_difference: float
    prepared_in: float
    rounds: int


def bench_runtimes(
    model: nn.Module,
    schedule: str | Schedule,
    pooling: PoolingOptions,
    runtimes: Sequence[str],
    options: BenchOptions,
    on_step: Callable[[], object] = lambda: None,
) -> list[RuntimeResult]:
    """Measure one method and schedule in each runtime on the CPU, on random images.

    In each runtime the base and the pooled model take turns, one forward each. Runtimes come one
    after the other, as the threads of one go on spinning for a while after a forward, and would
    take the cores from the next. `model` is left as it was.

    Args:
        runtimes: names in `RUNTIMES`, of which nothing may be missing.
        options: batch size, threads and seconds for each runtime; float32 alone.
        on_step: called when a model is ready in a runtime.

    Raises:
        UserError: a runtime is unknown, or what it needs is not there.
        TpcliError: a model can't be exported.
    """
    for name in runtimes:
        check_choice("runtime", name, RUNTIMES)
        if RUNTIMES[name].missing:
            raise UserError(f"{RUNTIMES[name].missing}.")
    base = unpool(copy.deepcopy(model)).cpu().eval()
    pooled = pool(copy.deepcopy(base), schedule, pooling)
    spec = pooling_spec(pooled)
    assert spec is not None
    images = random_images(base, options, torch.device("cpu"))
    with (
        cpu_threads(options.threads) as threads,
        tempfile.TemporaryDirectory(prefix="tpcli-") as folder,
        _hushed(),
    ):
        calls: list[Call] = []
        took: list[float] = []
        for name in runtimes:
            for kind, version in (("base", base), ("pooled", pooled)):
                began = time.perf_counter()
                place = Path(folder) / kind
                place.mkdir(exist_ok=True)
                calls.append(prepare(name, version, images, threads, place))
                took.append(time.perf_counter() - began)
                on_step()
        with timing_setup(options):
            apart = _differences(calls, (base, pooled), images)
            pairs = [calls[i : i + 2] for i in range(0, len(calls), 2)]
            timed = [interleaved(pair, images, options) for pair in pairs]
    return [
        RuntimeResult(
            runtime=name,
            method=pooling.method,
            schedule=spec.schedule.name,
            batch_size=options.batch_size,
            threads=threads,
            pooled=timing(seconds[:, 1], options.batch_size),
            base=timing(seconds[:, 0], options.batch_size),
            speedup=float(np.median(seconds[:, 0] / seconds[:, 1])),
            max_difference=apart[2 * i + 1],
            base_max_difference=apart[2 * i],
            prepared_in=took[2 * i + 1],
            rounds=len(seconds),
        )
        for i, (name, seconds) in enumerate(zip(runtimes, timed, strict=True))
    ]


@contextmanager
def _hushed() -> Iterator[None]:
    """Silence the warnings of compilers and quantizers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _differences(calls: Sequence[Call], models: Sequence[nn.Module], images: Tensor) -> list[float]:
    """Largest difference of each call's output to that of its model in torch."""
    expected = [model(images) for model in models]
    return [
        float((call(images).to(expected[i % 2]) - expected[i % 2]).abs().max())
        for i, call in enumerate(calls)
    ]
