"""`tpcli bench --runtime`: the same model in several runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tpcli.cli.values import Value, some_of
from tpcli.cli.voice import note
from tpcli.errors import UserError
from tpcli.runtimes.kinds import RUNTIMES

if TYPE_CHECKING:
    from tpcli.models import LoadedModel
    from tpcli.options import PoolingOptions
    from tpcli.runtimes.timing import RuntimeResult
    from tpcli.schedule import Schedule

SOME_RUNTIMES = Value(
    lambda text: ",".join(some_of(list(RUNTIMES))(text)), "RUNTIME", lambda: RUNTIMES
)
SPARE = ("export s", "base differs", "base p95 ms", "p95 ms", "base", "images/s", "batch")


@dataclass(frozen=True)
class RuntimeBench:
    """What is to be timed, and where."""

    names: tuple[str, ...]
    batch_sizes: Sequence[int]
    threads: int | None
    seconds: float

    def check(self, others: dict[str, bool]) -> None:
        """Fail where an option is given that has no effect here; others: options, by flag."""
        for flag, is_given in others.items():
            if is_given:
                raise UserError(
                    f"{flag} has no effect on --runtime, which times in float32 on the CPU; leave "
                    "it out."
                )

    def run(
        self,
        loaded: LoadedModel,
        ways: Sequence[tuple[str | Schedule, PoolingOptions]],
        as_json: bool,
    ) -> None:
        """Time each schedule and method, and print."""
        from tpcli.cli import render
        from tpcli.forwards import BenchOptions
        from tpcli.runtimes.timing import bench_runtimes

        results: list[RuntimeResult] = []
        steps = 2 * len(self.names) * len(ways) * len(self.batch_sizes)
        with render.progress_bar(f"bench {loaded.name}, exporting", steps) as advance:
            for size in self.batch_sizes:
                for schedule, chosen in ways:
                    options = BenchOptions(size, "cpu", threads=self.threads, seconds=self.seconds)
                    results += bench_runtimes(
                        loaded.model, schedule, chosen, self.names, options, lambda: advance(1)
                    )
        if as_json:
            render.print_json([_document(loaded.name, result) for result in results])
        else:
            _print(loaded.name, results)


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


def _document(model: str, r: RuntimeResult) -> dict[str, Any]:
    timings = {
        f"{prefix}{name}": value
        for prefix, timing in (("", r.pooled), ("base_", r.base))
        for name, value in asdict(timing).items()
    }
    rest = {name: value for name, value in asdict(r).items() if name not in ("pooled", "base")}
    return {"model": model, "device": "cpu", "dtype": "float32", **rest, **timings}


def _print(model: str, results: Sequence[RuntimeResult]) -> None:
    from tpcli.cli import render

    several = len({r.method for r in results}) > 1
    schedules = len({r.schedule for r in results}) > 1
    columns = ["runtime", *(["schedule"] if schedules else []), *(["method"] if several else [])]
    columns += ["batch", "speed-up", "images/s", "base"]
    columns += ["p95 ms", "base p95 ms", "differs", "base differs", "export s"]
    rows = [
        [
            r.runtime,
            *([r.schedule] if schedules else []),
            *([r.method] if several else []),
            str(r.batch_size),
            f"{r.speedup:.2f}x",
            f"{r.pooled.images_per_second:.1f}",
            f"{r.base.images_per_second:.1f}",
            f"{r.pooled.latency_p95_ms:.1f}",
            f"{r.base.latency_p95_ms:.1f}",
            f"{r.max_difference:.0e}",
            f"{r.base_max_difference:.0e}",
            f"{r.prepared_in:.0f}",
        ]
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
    render.print_table(title, columns, rows, caption, SPARE)
