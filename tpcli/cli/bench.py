"""`tpcli bench`: time a pooled model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tpcli.config.choices import DEFAULT_SCHEDULE, DTYPES, RUNTIMES
from tpcli.config.outputs import BENCH_TABLE_KIND, FIGURE_KIND
from tpcli.errors import UserError
from tpcli.system.files import check_output

from . import render
from .field_options import (
    POOLING_PANEL,
    SCHEDULE_HELP,
    MethodGroup,
    PoolingGroup,
    method_names,
    some_methods,
)
from .groups import DeviceOption, JsonOption, ModelArgument, ModelGroup
from .values import FIGURE, SCHEDULE, SIZE, Value, choice, flag, number, option, some_of, whole
from .verbosity import note

if TYPE_CHECKING:
    from tpcli.bench.compare import BenchResult
    from tpcli.bench.runtimes import RuntimeResult
    from tpcli.config.options import PoolingOptions
    from tpcli.config.schedule import Schedule
    from tpcli.models.load import LoadedModel


SOME_RUNTIMES = Value(
    lambda text: ",".join(some_of(list(RUNTIMES))(text)), "RUNTIME", lambda: RUNTIMES
)
RUNTIME_SPARE = ("export s", "base differs", "base p95 ms", "p95 ms", "base", "images/s", "batch")


def installed(names: Sequence[str]) -> tuple[str, ...]:
    """Those that can run; of the others it is said how to get them.

    Raises:
        UserError: none can.
    """
    missing = [RUNTIMES[name].missing for name in names if RUNTIMES[name].missing]
    if len(missing) == len(names):
        raise UserError(f"{missing[0]}.")
    for sentence in missing:
        note(f"left out: {sentence}")
    return tuple(name for name in names if not RUNTIMES[name].missing)


def _bench_runtimes(
    loaded: LoadedModel,
    ways: Sequence[tuple[str | Schedule, PoolingOptions]],
    names: tuple[str, ...],
    sizes: Sequence[int],
    threads: int | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Time each schedule and method in each runtime, and print."""
    from tpcli.bench.clock import BenchOptions
    from tpcli.bench.runtimes import bench_runtimes

    results: list[RuntimeResult] = []
    steps = 2 * len(names) * len(ways) * len(sizes)
    with render.progress_bar(f"bench {loaded.name}, exporting", steps) as advance:
        for size, (schedule, chosen) in product(sizes, ways):
            options = BenchOptions(size, "cpu", threads=threads, seconds=seconds)
            results += bench_runtimes(
                loaded.model, schedule, chosen, names, options, lambda: advance(1)
            )
    if as_json:
        render.print_json([_runtimes_document(loaded.name, result) for result in results])
    else:
        _print_runtimes(loaded.name, results)


def _runtimes_document(model: str, r: RuntimeResult) -> dict[str, Any]:
    values = asdict(r)
    pooled, base = values.pop("pooled"), values.pop("base")
    base = {f"base_{name}": value for name, value in base.items()}
    return {"model": model, "device": "cpu", "dtype": "float32", **values, **pooled, **base}


def _print_runtimes(model: str, results: Sequence[RuntimeResult]) -> None:
    several = len({r.method for r in results}) > 1
    schedules = len({r.schedule for r in results}) > 1
    records = [
        {
            "runtime": r.runtime,
            **({"schedule": r.schedule} if schedules else {}),
            **({"method": r.method} if several else {}),
            "batch": str(r.batch_size),
            "speed-up": f"{r.speedup:.2f}x",
            "images/s": f"{r.pooled.images_per_second:.1f}",
            "base": f"{r.base.images_per_second:.1f}",
            "p95 ms": f"{r.pooled.latency_p95_ms:.1f}",
            "base p95 ms": f"{r.base.latency_p95_ms:.1f}",
            "differs": f"{r.max_difference:.0e}",
            "base differs": f"{r.base_max_difference:.0e}",
            "export s": f"{r.prepared_in:.0f}",
        }
        for r in results
    ]
    first = results[0]
    caption = (
        f"float32 on cpu, {first.threads} thread{'s' if first.threads > 1 else ''}, "
        f"{'' if several else f'{first.method}, '}all runtimes in turn. Differs: the largest "
        "difference of an answer to torch's, on random images; export: of the pooled model, with "
        "compiling."
    )
    title = model if schedules else f"{model}, schedule {first.schedule}"
    render.print_records(title, records, caption, RUNTIME_SPARE)


SPARE = ("MiB", "p95 ms", "base", "pooling", "kept", "ideal")


def bench(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    schedule: Annotated[
        list[str] | None,
        option(
            SCHEDULE,
            f"{SCHEDULE_HELP.rstrip('.')}; repeat for more.",
            panel=POOLING_PANEL,
            shown=f"the model's own, else {DEFAULT_SCHEDULE}",
        ),
    ] = None,
    method: Annotated[list[str] | None, some_methods()] = None,
    pooling: MethodGroup,
    batch_size: Annotated[
        list[int] | None, option(SIZE, "Images in a batch; repeat for more.", shown="16")
    ] = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        list[str] | None,
        choice(
            DTYPES,
            "Precision",
            end="; repeat for more. 16-bit types run in autocast.",
            shown="float32",
        ),
    ] = None,
    threads: Annotated[
        int | None, option(whole(1, 256), "CPU threads.", shown="torch's own")
    ] = None,
    compiled: Annotated[
        bool, flag("Compile all versions with torch.compile.", "--compile")
    ] = False,
    seconds: Annotated[
        float, option(number(0, 86400), "Seconds of timing for each row, at least.")
    ] = 10.0,
    runtime: Annotated[
        str | None,
        option(
            SOME_RUNTIMES,
            f"Time the exported models on the CPU instead, in these runtimes, separated by commas: "
            f"{', '.join(RUNTIMES)}.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(FIGURE, "Bar chart to write: .png, .svg or .pdf; a .csv goes beside it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Time the unpooled, pooled and ideal model in one interleaved run, on random images.

    The ideal model drops tokens by slicing, at no cost: its speed-up is the upper bound for any
    pooling method.

    Examples:
        tpcli bench deit_small_patch16_224 --no-pretrained --schedule r:13 --batch-size 16
        tpcli bench pooled/ --batch-size 1 --batch-size 64 --device cuda --dtype bfloat16
        tpcli bench --method ward,tome,k-medoids --out bench.png
        tpcli bench deit_small_patch16_224 --runtime torch,onnxruntime,openvino --threads 1
        tpcli bench --schedule flops:0.6 --schedule flops:0.6@2,4,6
    """
    if out is not None:
        check_output(out, kind=FIGURE_KIND)
        check_output(out.with_suffix(".csv"), kind=BENCH_TABLE_KIND)
    sizes = batch_size or [16]
    runtimes = installed(runtime.split(",")) if runtime is not None else ()
    if runtimes:
        others = {
            f"--device {device}": device not in ("auto", "cpu"),
            "--dtype": bool(set(dtype or []) - {"float32"}),
            "--compile": compiled,
            "--out": out is not None,
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise UserError(
                f"{given[0]} has no effect on --runtime, which times in float32 on the CPU; leave "
                "it out."
            )
    methods = [pooling.options(name) for name in method_names(method)]
    schedules = list(dict.fromkeys(schedule)) if schedule else [None]
    asked = [PoolingGroup(schedule=text, **pooling.given) for text in schedules]
    if not methods:
        for group in asked:
            group.check(model)

    from tpcli.bench.clock import BenchOptions
    from tpcli.bench.compare import bench as measure
    from tpcli.surgery import pooling_spec, unpool
    from tpcli.system.devices import pick_device

    pick_device(device)
    loaded = loading.load(model)
    own = pooling_spec(loaded.model)
    ways: list[tuple[str | Schedule, PoolingOptions]] = []
    for group in asked:
        wanted: str | Schedule = group.schedule or (own.schedule if own else DEFAULT_SCHEDULE)
        ways += [(wanted, chosen) for chosen in methods]
        if not methods:
            spec = group.spec_on(loaded, own, DEFAULT_SCHEDULE)
            ways.append((spec.schedule, spec.options))
    unpool(loaded.model)
    if runtimes:
        _bench_runtimes(loaded, ways, runtimes, sizes, threads, seconds, as_json)
        return
    results = []
    runs = list(product(sizes, dtype or DTYPES[:1], ways))
    with render.progress_bar(f"bench {loaded.name}", 100 * len(runs)) as advance:
        for size, kind, (wanted, chosen) in runs:
            options = BenchOptions(size, device, kind, threads, compiled, seconds)
            results.append(measure(loaded.model, wanted, chosen, options))
            advance(100)
    documents = [_document(loaded.name, result) for result in results]
    if out is not None:
        _write(out, documents, results)
    if as_json:
        render.print_json(documents if len(documents) > 1 else documents[0])
    else:
        _print(loaded.name, results)
        if out is not None:
            render.say(f"written: {out}, {out.with_suffix('.csv')}")


def _write(out: Path, documents: list[dict[str, Any]], results: list[BenchResult]) -> None:
    import pandas as pd

    from tpcli.report import figure_bytes
    from tpcli.report.figure import bench_figure
    from tpcli.report.tables import csv_text
    from tpcli.system.files import replacing, write_text

    first = documents[0]
    figure = bench_figure(results, f"{first['model']}{_of_all(results)}, {first['device']}")
    with replacing(out) as fresh:
        fresh.write_bytes(figure_bytes(figure, out.suffix.lower()))
    table = pd.DataFrame(documents).drop(columns="tokens")
    write_text(out.with_suffix(".csv"), csv_text(table))


def _document(model: str, r: BenchResult) -> dict[str, Any]:
    return {
        "model": model,
        "method": r.method,
        "schedule": r.schedule,
        "tokens": list(r.tokens),
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
    from tpcli.pooling.backends import c as c_kernels

    several = len({r.dtype for r in results}) > 1
    shared = _of_all(results)
    records = [
        {
            **({} if shared else {"schedule": r.schedule}),
            "method": r.method,
            "batch": f"{r.batch_size} {r.dtype}" if several else str(r.batch_size),
            "images/s": f"{r.pooled.images_per_second:.1f}",
            "base": f"{r.base.images_per_second:.1f}",
            "speed-up": f"{r.speedup:.2f}x",
            "ideal": f"{r.ideal_speedup:.2f}x",
            "kept": f"{100 * r.speedup / r.ideal_speedup:.0f}%",
            "pooling": f"{100 * r.pooling_share:.1f}%",
            "p95 ms": f"{r.pooled.latency_p95_ms:.1f}",
            "MiB": "" if r.peak_memory is None else f"{r.peak_memory / 2**20:.0f}",
        }
        for r in results
    ]
    first = results[0]
    memory = first.base_peak_memory
    caption = (
        f"{'' if several else first.dtype + ' '}on {first.device}. Ideal: the same schedule with "
        "tokens sliced off; kept: speed-up as a share of it; pooling: its share of the time"
        f"{', before compiling' if first.compiled else ''}; MiB: the most that a forward allocates"
        + ("." if memory is None else f" (base: {memory / 2**20:.0f} at batch {first.batch_size}).")
    )
    if first.device == "cpu" and c_kernels.kernels is None:
        caption += (
            " Pooling ran in torch's operators, for want of a C compiler when tpcli was installed; "
            "install it again with one for faster pooling."
        )
    render.print_records(f"{model}{shared}", records, caption, SPARE)


def _of_all(results: list[BenchResult]) -> str:
    """The schedule, for a title, where there is but one."""
    names = {r.schedule for r in results}
    return f", schedule {names.pop()}" if len(names) == 1 else ""
