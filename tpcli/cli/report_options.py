"""Options that say what is in the report of a sweep, and how it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tpcli.cli.kinds import SIZE
from tpcli.cli.values import FIGURE, flag, one_of, option

if TYPE_CHECKING:
    from tpcli.pareto import ModelSource, SweepOptions, SweepResult

PANEL = "Report"
AXES = ("gflops", "throughput", "latency")
STYLES = ("screen", "paper")
BATCH_SIZE = 16
SECONDS = 2.0
"""For each point that is timed."""


@dataclass(frozen=True)
class ReportGroup:
    """What is in the report, and how it is drawn."""

    x: Annotated[
        str,
        option(
            one_of(AXES),
            f"Horizontal axis: {', '.join(AXES)}; speed is that of the evaluation, or of --bench.",
            "--x",
            panel=PANEL,
        ),
    ] = "gflops"
    bench: Annotated[
        bool,
        flag(
            "Time every point too, all of a model in one interleaved run; milliseconds stand "
            "beside GFLOPs.",
            "--bench",
            panel=PANEL,
        ),
    ] = False
    bench_batch_size: Annotated[
        int | None,
        option(SIZE, "Images in a batch that is timed; asks for --bench.", shown="16", panel=PANEL),
    ] = None
    out: Annotated[
        Path,
        option(FIGURE, "Figure: .png, .svg or .pdf; the other files go beside it.", panel=PANEL),
    ] = Path("pareto.png")
    style: Annotated[
        str,
        option(
            one_of(STYLES),
            "Figure for a screen, or of a column's width for a paper, with a table in LaTeX "
            "beside it: screen, paper.",
            panel=PANEL,
        ),
    ] = "screen"

    @property
    def is_paper(self) -> bool:
        """Whether the figure is for a paper."""
        return self.style == "paper"

    @property
    def is_timed(self) -> bool:
        """Whether points are timed; a batch size asks for it."""
        return self.bench or self.bench_batch_size is not None

    def timed(
        self, result: SweepResult, sources: Sequence[ModelSource], options: SweepOptions
    ) -> SweepResult:
        """The result with a time for each point."""
        from tpcli.cli import render
        from tpcli.devices import pick_device, sixteen_bit_type
        from tpcli.forwards import BenchOptions
        from tpcli.pareto.timing import timed

        kind = sixteen_bit_type(pick_device(options.device)) if options.amp else "float32"
        bench = BenchOptions(
            self.bench_batch_size or BATCH_SIZE,
            options.device,
            str(kind).removeprefix("torch."),
            seconds=SECONDS,
        )
        with render.progress_bar("bench, all points in turn", None):
            return timed(result, sources, bench)
