"""`tpcli pareto`: the accuracy-versus-GFLOPs curve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpcli.cli.options import DataGroup, JsonOption, MethodGroup, ModelGroup, RunGroup, spread

if TYPE_CHECKING:
    from tpcli.pareto import ModelSource, SweepOptions, SweepResult
    from tpcli.report import ReportContext

DEFAULT_BUDGETS = "0.9,0.8,0.7,0.6,0.5,0.4,0.3"
DEFAULT_METHODS = ("ward", "k-medoids", "k-means", "wk-medoids")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("pareto")(spread(pareto))


def pareto(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="One or more models, as in the other commands.", metavar="[MODEL]..."),
    ] = None,
    *,
    loading: ModelGroup,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods, one curve each: repeat, or separate by commas.",
            show_default=",".join(DEFAULT_METHODS),
            rich_help_panel="Pooling",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="Shares of the base model's FLOPs.", rich_help_panel="Pooling"),
    ] = DEFAULT_BUDGETS,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="Schedules to measure instead of the budgets: repeat.", rich_help_panel="Pooling"
        ),
    ] = None,
    pooling: MethodGroup,
    source: DataGroup,
    run: RunGroup,
    out: Annotated[
        Path, typer.Option(help="Figure: .png, .svg or .pdf; the other files go beside it.")
    ] = Path("pareto.png"),
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of measured points.", show_default="~/.cache/tpcli"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sweep models, methods and budgets; draw top-1 against GFLOPs into a report.

    Points are measured once and kept: a sweep that was stopped goes on where it was, and several
    processes with the same --cache share the work.

    Example: tpcli pareto deit_small_patch16_224 --data imagenet/ --out plot.png
    """
    from tpcli.cli import render
    from tpcli.evaluation import pick_device
    from tpcli.files import check_output
    from tpcli.pareto import ModelSource, SweepOptions
    from tpcli.pareto.cache import default_folder
    from tpcli.report import write_report
    from tpcli.report.document import report_paths
    from tpcli.schedule import parse_budget

    render.quiet()
    _check_suffix(out)
    for path in report_paths(out).values():
        check_output(path)
    cache = cache or default_folder()
    check_output(cache / "points")
    device = str(pick_device(run.device))
    names = [name for item in method or DEFAULT_METHODS for name in item.split(",")]
    options = SweepOptions(
        methods=[pooling.options(name) for name in dict.fromkeys(names)],
        budgets=[] if schedule else [parse_budget(text) for text in budget.split(",")],
        schedules=schedule or [],
        batch_size=run.batch_size,
        device=device,
        amp=run.amp,
        workers=run.workers,
        strict=run.strict,
    )
    for model in models or ["demo"]:
        source.require_for(model)
    sources = []
    for model in models or ["demo"]:
        loaded = loading.load(model)
        sources.append(ModelSource(loaded, source.open(loaded)))
    result = _run(sources, options, cache)
    context = _context(sources, options, result, device)
    document = write_report(result, context, out)
    if as_json:
        render.print_json(document)
    else:
        _print(result, context, out)


def _check_suffix(out: Path) -> None:
    from tpcli.errors import UserError
    from tpcli.report import SUFFIXES

    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} has no known suffix; use one of {', '.join(SUFFIXES)}.")


def _run(sources: list[ModelSource], options: SweepOptions, cache: Path) -> SweepResult:
    """The sweep with a live table of points on stderr."""
    from tpcli.cli.live import LiveSweep
    from tpcli.pareto import sweep

    curves = len(options.methods) * (len(options.budgets) + len(options.schedules))
    with LiveSweep(len(sources) * (1 + curves)) as live:
        return sweep(sources, options, cache, on_job=live.start, on_point=live.add)


def _context(
    sources: list[ModelSource], options: SweepOptions, result: SweepResult, device: str
) -> ReportContext:
    import datetime
    import platform
    import shlex

    import timm
    import torch

    from tpcli.report import ReportContext
    from tpcli.version import __version__

    data = sources[0].data
    names = ", ".join(s.loaded.name for s in sources)
    return ReportContext(
        title=f"Token Pooling of {names} on {Path(data.spec).name}",
        data=f"{data.spec}, {data.split}",
        count=result.points[0].count,
        device=device,
        precision="16-bit autocast" if options.amp else "float32",
        command=shlex.join(["tpcli", *sys.argv[1:]]),
        versions={
            "tpcli": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "Python": platform.python_version(),
        },
        date=datetime.date.today().isoformat(),
    )


def _print(result: SweepResult, context: ReportContext, out: Path) -> None:
    from tpcli.cli import render
    from tpcli.report.document import report_paths, table_rows

    columns = ["model", "method", "budget", "GFLOPs", "of base", "top-1", "difference", "images/s"]
    keys = ["model", "method", "budget", "gflops", "ratio", "top1", "difference", "speed"]
    rows = [[row[key] for key in keys] for row in table_rows(result)]
    caption = f"{context.count} images of {context.data}. {render.CONVENTION}."
    render.print_table(context.title, columns, rows, caption)
    for entry in result.headlines:
        print(entry.words)
    print("written: " + ", ".join(str(path) for path in report_paths(out).values()))
