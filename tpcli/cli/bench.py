"""`tpcli bench`: do FLOPs turn into seconds?"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpcli.cli.options import (
    DEFAULT_SCHEDULE,
    JsonOption,
    MethodGroup,
    ModelArgument,
    ModelGroup,
    spread,
)

if TYPE_CHECKING:
    from tpcli.benchmark import BenchResult


class Dtype(str, Enum):
    """Precision of the forward pass."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(spread(bench))


def bench(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    schedule: Annotated[
        str, typer.Option(help="As in the other commands.", rich_help_panel="Pooling")
    ] = DEFAULT_SCHEDULE,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Methods: repeat, or separate by commas.", rich_help_panel="Pooling"),
    ] = None,
    pooling: MethodGroup,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Images in a batch: repeat for several.", min=1, show_default="16"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="16-bit types run in autocast.")] = Dtype.float32,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile all versions.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Time for each row.", min=0.0)] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Time base, pooled and ideal model in one interleaved run, on random images.

    The ideal drops tokens by slicing, which costs nothing: how much of its speed-up is kept is what
    a pooling method can be held to.

    Example: tpcli bench deit_small_patch16_224 --no-pretrained --schedule r:13 --batch-size 16
    """
    from tpcli.benchmark import BenchOptions
    from tpcli.benchmark import bench as measure
    from tpcli.cli import render
    from tpcli.options import DEFAULT_METHOD
    from tpcli.surgery import unpool

    render.quiet()
    names = [name for item in method or [DEFAULT_METHOD] for name in item.split(",")]
    methods = [pooling.options(name) for name in dict.fromkeys(names)]
    loaded = loading.load(model)
    unpool(loaded.model)
    results = []
    runs = [(size, chosen) for size in batch_size or [16] for chosen in methods]
    with render.progress_bar(f"bench {loaded.name}", 100 * len(runs)) as advance:
        for size, chosen in runs:
            options = BenchOptions(size, device, dtype.value, threads, compiled, seconds)
            results.append(measure(loaded.model, schedule, chosen, options))
            advance(100)
    if as_json:
        documents = [_document(loaded.name, result) for result in results]
        render.print_json(documents if len(documents) > 1 else documents[0])
    else:
        _print(loaded.name, results)


def _document(model: str, r: BenchResult) -> dict[str, Any]:
    return {
        "model": model,
        "method": r.method,
        "schedule": r.schedule,
        "device": r.device,
        "dtype": r.dtype,
        "batch_size": r.batch_size,
        "compiled": r.compiled,
        "images_per_second": r.pooled.images_per_second,
        "base_images_per_second": r.base.images_per_second,
        "ideal_images_per_second": r.ideal.images_per_second,
        "latency_ms": r.pooled.latency_ms,
        "latency_p95_ms": r.pooled.latency_p95_ms,
        "base_latency_ms": r.base.latency_ms,
        "base_latency_p95_ms": r.base.latency_p95_ms,
        "speedup": r.speedup,
        "ideal_speedup": r.ideal_speedup,
        "pooling_share": r.pooling_share,
        "peak_memory": r.peak_memory,
        "base_peak_memory": r.base_peak_memory,
        "rounds": r.rounds,
    }


def _print(model: str, results: list[BenchResult]) -> None:
    from tpcli.cli import render

    columns = [
        "method",
        "batch",
        "images/s",
        "base",
        "speed-up",
        "ideal",
        "kept",
        "pooling",
        "p95 ms",
    ]
    rows = [
        [
            r.method,
            str(r.batch_size),
            f"{r.pooled.images_per_second:.1f}",
            f"{r.base.images_per_second:.1f}",
            f"{r.speedup:.2f}x",
            f"{r.ideal_speedup:.2f}x",
            f"{100 * r.speedup / r.ideal_speedup:.0f}%",
            f"{100 * r.pooling_share:.1f}%",
            f"{r.pooled.latency_p95_ms:.1f}",
        ]
        for r in results
    ]
    first = results[0]
    caption = (
        f"{first.dtype} on {first.device}. Ideal: the same schedule with tokens sliced off; kept: "
        "speed-up as a share of it; pooling: its share of the time, by the profiler."
    )
    render.print_table(f"{model}, schedule {first.schedule}", columns, rows, caption)
