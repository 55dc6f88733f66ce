"""`tpcli pareto`: accuracy against GFLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tpcli.config.choices import (
    BOTH_FAMILIES,
    DEFAULT_BUDGETS,
    DEFAULT_FAMILY,
    FAMILIES,
    SEARCHED,
    SWEEP_METHODS,
)
from tpcli.config.outputs import check_report
from tpcli.config.specs import DEMO
from tpcli.errors import UserError
from tpcli.system.ranks import team

from . import render
from .field_options import POOLING_PANEL, FinetuneGroup, MethodGroup, method_names, some_methods
from .groups import DataGroup, JsonOption, MeasureGroup, ModelGroup, ReportGroup, RunGroup
from .provenance import CommandFor, report_context
from .values import BUDGETS, FOLDER, MODEL, SCHEDULE, Value, argument, budgets, one_of, option
from .verbosity import note

if TYPE_CHECKING:
    from tpcli.config.recipe import Recipe
    from tpcli.evaluation.choose import Task
    from tpcli.finetune import TrainingData
    from tpcli.models.load import LoadedModel
    from tpcli.pareto import ModelSource, SweepResult
    from tpcli.report import ReportContext

SCHEDULES = Value(
    lambda text: text if text == SEARCHED else SCHEDULE.read(text),
    SCHEDULE.metavar,
    lambda: (*SCHEDULE.names(), SEARCHED),
)


def pareto(
    models: Annotated[
        list[str] | None,
        argument(
            MODEL, "One or more models: demo, a timm model name, hf-hub:org/name, or a folder."
        ),
    ] = None,
    *,
    loading: ModelGroup,
    method: Annotated[list[str] | None, some_methods("One curve each.", SWEEP_METHODS)] = None,
    budget: Annotated[
        str,
        option(
            BUDGETS,
            "Budgets: shares of the unpooled model's FLOPs, separated by commas.",
            panel=POOLING_PANEL,
        ),
    ] = ",".join(map(str, DEFAULT_BUDGETS)),
    schedule: Annotated[
        list[str] | None,
        option(
            SCHEDULES,
            "Schedules to measure instead of the budgets; repeat for more. search: search one for "
            "each budget, as tpcli schedule does.",
            panel=POOLING_PANEL,
        ),
    ] = None,
    family: Annotated[
        str,
        option(
            one_of((BOTH_FAMILIES, *FAMILIES)),
            "Schedules that meet the budgets: the default family, constant r, or both, a curve "
            "each.",
            panel=POOLING_PANEL,
        ),
    ] = DEFAULT_FAMILY,
    pooling: MethodGroup,
    source: DataGroup,
    measuring: MeasureGroup,
    run: RunGroup,
    training: FinetuneGroup,
    reporting: ReportGroup,
    cache: Annotated[
        Path | None,
        option(
            FOLDER, "Folder of measured points; a sweep resumes from it.", shown="~/.cache/tpcli"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sweep models, methods and budgets; draw accuracy against GFLOPs into a report.

    Without a head or labels, draws how near the pooled model is to the unpooled one (--measure).

    Points are measured once and kept: a stopped sweep resumes, and several processes with the same
    --cache share the work. The report is written after every curve.

    Examples:
        tpcli pareto --out plot.png
        tpcli pareto deit_small_patch16_224 --data imagenet/ --out plot.png
        tpcli pareto tuned/ mine/ --data test.tar --method ward,tome --budget 0.8,0.6,0.4
        tpcli pareto vit_small_patch14_dinov2 --data photos/ --measure similarity
    """
    check_report(reporting.out, is_paper=reporting.is_paper)
    measuring.check()
    poolings = [pooling.options(name) for name in method_names(method) or SWEEP_METHODS]
    recipe = training.recipe
    if recipe is not None and team().size > 1:
        raise UserError(
            "--finetune-epochs trains with all processes, so they can't share out the points; "
            "start tpcli pareto once."
        )
    searched = SEARCHED in (schedule or [])
    schedules = [spec for spec in schedule or [] if spec != SEARCHED]
    specs = models or [DEMO]
    for model in specs:
        source.require_for(model, source.split, training.train_split)
        if specs.count(model) > 1:
            raise UserError(f"model {model!r} is there twice; name each model once.")

    from tpcli.models.load import told_apart
    from tpcli.pareto import ModelSource, SweepOptions, sweep
    from tpcli.pareto.cache import default_folder, usable_folder
    from tpcli.report import write_report
    from tpcli.report.clusters import pooled_strip
    from tpcli.search import calibration_data
    from tpcli.system.devices import pick_device

    from .sweep_progress import LiveSweep

    cache = usable_folder(cache or default_folder())
    device = str(pick_device(run.device))
    options = SweepOptions(
        poolings=poolings,
        budgets=budgets(budget) if searched or not schedules else [],
        schedules=schedules,
        families=(SEARCHED,) if searched else FAMILIES if family == BOTH_FAMILIES else (family,),
        recipe=recipe,
        run=run.options(device),
        measure=measuring.asked,
        bank=measuring.bank or "pooled",
        timing=reporting.timing(device, run.amp),
    )
    data, more = source.data or DEMO, source.arguments()
    sources = [
        ModelSource(
            loaded,
            source.open(loaded),
            training=_training(loaded, source, training, device),
            calibration=calibration_data(data, loaded.data_config, **more) if searched else None,
            open_bank=measuring.opener(source, loaded, training.train_split),
        )
        for loaded in told_apart({model: loading.load(model) for model in specs})
    ]
    first = sources[0]
    render.say_left_out(first.data, first.training.train if first.training else None)
    named = {source.loaded.name: spec for source, spec in zip(sources, specs, strict=True)}
    command_for = CommandFor(named, loading, pooling, source, training)
    cautions = _warnings(sources, schedules, recipe)
    for caution in cautions:
        note(f"warning: {caution}")

    def context(result: SweepResult) -> ReportContext:
        names = ", ".join(s.loaded.name for s in sources)
        title = f"Token Pooling of {names} on {Path(first.data.spec).name}"
        images = f"{first.data.spec}, {first.data.split}{_bank(result.tasks[0])}"
        images += "".join(f" (warning: {caution})" for caution in cautions)
        count = result.points[0].count
        return report_context(title, images, count, device, run.amp, command_for)

    def write(result: SweepResult, strip: bytes | None = None) -> dict[str, Any]:
        return write_report(
            result, context(result), reporting.out, reporting.x, strip, is_paper=reporting.is_paper
        )

    def write_unfinished(result: SweepResult) -> None:
        if team().is_first:
            write(result)

    with LiveSweep(write_unfinished) as live:
        result = sweep(sources, options, cache, live)
        if not team().is_first:
            return
        live.begin("writing the report", None)
        document = write(result, pooled_strip(sources, result))
    if as_json:
        render.print_json(document)
    else:
        render.print_sweep(result, context(result), list(document["out"].values()))


def _training(
    loaded: LoadedModel, source: DataGroup, training: FinetuneGroup, device: str
) -> TrainingData | None:
    recipe = training.recipe
    if recipe is None:
        return None
    from tpcli.finetune import join

    from .field_options import open_training

    join(device)
    return open_training(source, loaded, recipe, training.train_split)


def _warnings(
    sources: Sequence[ModelSource], schedules: Sequence[str], recipe: Recipe | None
) -> list[str]:
    """What the scores can't be trusted for: what was chosen or trained on the images measured."""
    from tpcli.config.schedule import file_chosen_on
    from tpcli.data import chosen_on, warnings

    first = sources[0]
    made_on = [file_chosen_on(schedule) for schedule in schedules]
    if first.calibration is not None:
        made_on.append(chosen_on(first.calibration))
    made_on += [each for source in sources for each in source.loaded.made_on]
    found = warnings(made_on, first.data)
    if recipe is not None:
        found.append("fine-tuned points are the best of all epochs on these images")
    return found


def _bank(task: Task) -> str:
    if task.bank is None:
        return ""
    return (
        f" (neighbours among {task.bank.count} images of {task.bank.split}, by features of the "
        f"{task.bank_of} model)"
    )
