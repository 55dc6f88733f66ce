"""`tpcli analyze`: measure the tokens of a model, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tpcli.config.choices import ANALYZE_METHODS
from tpcli.config.options import pooling_options
from tpcli.config.outputs import ANALYSIS_FORMAT, check_report, report_paths
from tpcli.config.specs import DEMO, SPLITS

from . import render
from .field_options import method_names, some_methods
from .groups import DATA_PANEL, JsonOption, ModelArgument, ModelGroup, RunGroup, SourceGroup
from .provenance import report_context
from .values import FIGURE, SPLIT, option, whole


def analyze(
    model: ModelArgument = DEMO,
    *,
    loading: ModelGroup,
    method: Annotated[
        list[str] | None, some_methods("Methods whose kept variance is compared.", ANALYZE_METHODS)
    ] = None,
    source: SourceGroup,
    split: Annotated[
        str, option(SPLIT, f"Split to measure on: {', '.join(SPLITS)}.", panel=DATA_PANEL)
    ] = "validation",
    limit: Annotated[
        int,
        option(
            whole(1, 10**9), "Use at most N images, evenly spaced over the split.", panel=DATA_PANEL
        ),
    ] = 256,
    run: RunGroup,
    out: Annotated[
        Path,
        option(
            FIGURE, "Figure to write: .png, .svg or .pdf; .csv, .json, .md and .html go beside it."
        ),
    ] = Path("analysis.png"),
    as_json: JsonOption = False,
) -> None:
    """Measure patch tokens of an unpooled model: smoothing by attention, and redundancy.

    For every block: frequencies, effective rank, similarity, and the share of the variance that
    each method keeps. Needs no labels.

    Examples:
        tpcli analyze deit_small_patch16_224 --data imagenet/ --out analysis.png
        tpcli analyze vit_small_patch14_dinov2 --data photos/ --method ward,tome
    """
    check_report(out, ANALYSIS_FORMAT)
    source.require_for(model, split)
    methods = [pooling_options(name) for name in method_names(method) or ANALYZE_METHODS]

    from tpcli.analysis import run as measuring
    from tpcli.analysis.result import verdict
    from tpcli.report.analysis import write_analysis
    from tpcli.report.tables import measures_table
    from tpcli.system.devices import pick_device

    measuring.check_methods(methods)
    device = str(pick_device(run.device))
    loaded = loading.load(model)
    data = source.open_split(loaded, split, limit)
    render.say_left_out(data)
    with render.progress_bar(f"analyze {loaded.name}", data.count) as advance:
        found = measuring.analyze(
            loaded.model, data, methods, run.options(device), on_batch=advance
        )
    title = f"Tokens of {loaded.name} on {Path(data.spec).name}, {found.count} images"
    context = report_context(title, f"{data.spec}, {data.split}", found.count, device, run.amp)
    document = write_analysis(found, context, loaded.name, out)
    if as_json:
        render.print_json(document)
        return
    records = measures_table(found).astype(str).to_dict("records")
    render.print_records(title, records, spare=["residual", "nearest"])
    for sentence in verdict(found):
        render.say(sentence)
    if found.no_spectrum:
        render.say(f"no spectra: {found.no_spectrum}.")
    if found.unreadable:
        render.say(f"unreadable: {render.some(found.unreadable)}")
    render.say("written: " + ", ".join(str(path) for path in report_paths(out).values()))
