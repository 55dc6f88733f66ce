"""`tpcli optimize`: find and save the fastest model that meets the targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tpcli.config.choices import DEFAULT_MAX_DROP, DTYPES, OPTIMIZE_METHODS, RISKS
from tpcli.config.outputs import OPTIMIZED_MODEL_KIND
from tpcli.config.specs import DEMO, base_name
from tpcli.errors import TpcliError
from tpcli.optimize.options import Targets
from tpcli.system.files import check_output
from tpcli.system.resume import resumable

from . import render
from .field_options import MethodGroup, method_names, some_methods
from .groups import (
    DataGroup,
    DeviceOption,
    ForceOption,
    JsonOption,
    MeasureGroup,
    ModelArgument,
    ModelGroup,
    TrainSplit,
)
from .provenance import report_context
from .values import BUDGET, FOLDER, SIZE, choice, flag, number, one_of, option, whole
from .verbosity import note

if TYPE_CHECKING:
    from tpcli.optimize.result import Optimized

SPEED_PANEL = "Target hardware"


@dataclass(frozen=True)
class TargetGroup:
    """Targets: one or two of the first three."""

    PANEL = "Targets"

    max_drop: Annotated[
        float | None,
        option(
            number(0, 100),
            "Largest drop of the measure, in points.",
            shown=f"{DEFAULT_MAX_DROP:g} if no target is given",
        ),
    ] = None
    speedup: Annotated[
        float | None, option(number(1, 1000), "Smallest speed-up: times as fast as unpooled.")
    ] = None
    budget: Annotated[
        float | None, option(BUDGET, "Largest share of the unpooled model's FLOPs.")
    ] = None
    risk: Annotated[
        str,
        option(
            one_of(RISKS),
            "What must stay within --max-drop on the images that schedules are chosen on: upper "
            "(end of the drop's 95% interval) or mean.",
        ),
    ] = "upper"

    @property
    def targets(self) -> Targets:
        """The targets; a drop of half a point where none is given."""
        has_none = self.max_drop is None and self.speedup is None and self.budget is None
        drop = DEFAULT_MAX_DROP if has_none else self.max_drop
        return Targets(drop, self.speedup, self.budget, self.risk)


def optimize(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    wanted: TargetGroup,
    method: Annotated[list[str] | None, some_methods("Methods to try.", OPTIMIZE_METHODS)] = None,
    pooling: MethodGroup,
    source: DataGroup,
    train_split: TrainSplit = "train",
    measuring: MeasureGroup,
    batch_size: Annotated[int, option(SIZE, "Images in a timed batch.", panel=SPEED_PANEL)] = 16,
    dtype: Annotated[
        str, choice(DTYPES, "Precision", end="; 16-bit types run in autocast.", panel=SPEED_PANEL)
    ] = "float32",
    threads: Annotated[
        int | None, option(whole(1, 256), "CPU threads.", panel=SPEED_PANEL, shown="torch's own")
    ] = None,
    compiled: Annotated[
        bool,
        flag(
            "Compile the final benchmark's models with torch.compile.",
            "--compile",
            panel=SPEED_PANEL,
        ),
    ] = False,
    seconds: Annotated[
        float,
        option(
            number(0, 86400),
            "Seconds of timing for each method and for the chosen model.",
            panel=SPEED_PANEL,
        ),
    ] = 15.0,
    device: DeviceOption = "auto",
    workers: Annotated[int, option(whole(0, 256), "Worker processes that decode images.")] = 2,
    seed: Annotated[int, option(whole(0, 2**31), "Seed of the selection/check split.")] = 0,
    out: Annotated[
        Path | None, option(FOLDER, "Folder to write the model to.", shown="MODEL-optimized")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the fastest schedule that meets your targets, and save the pooled model.

    Schedules are chosen on one half of the images and checked on the held-out half. If a target
    can't be met, nothing is saved and the exit code is 1.

    Examples:
        tpcli optimize deit_small_patch16_224 --data imagenet/ --max-drop 0.5
        tpcli optimize mine/ --data photos/ --speedup 1.5 --batch-size 1 --out fast/
    """
    out = out or Path(f"{base_name(model)}-optimized")
    targets = wanted.targets
    measuring.check()
    poolings = [pooling.options(name) for name in method_names(method) or OPTIMIZE_METHODS]
    source.require_for(model, source.split, train_split)
    check = partial(check_output, out, force, is_folder=True, kind=OPTIMIZED_MODEL_KIND)
    with resumable(out, "optimize", check, note) as progress:
        from tpcli.bench.clock import BenchOptions
        from tpcli.data import warnings
        from tpcli.optimize.options import OptimizeOptions
        from tpcli.optimize.run import optimize as run
        from tpcli.system.devices import pick_device

        chosen = str(pick_device(device))
        options = OptimizeOptions(
            poolings=poolings,
            bench=BenchOptions(batch_size, chosen, dtype, threads, compiled, seconds),
            workers=workers,
            measure=measuring.asked,
            bank=measuring.bank or "pooled",
            seed=seed,
        )
        loaded = loading.load(model)
        data = source.open(loaded)
        render.say_left_out(data)
        with render.progress_bars(loaded.name) as begin:
            result = run(
                loaded,
                data,
                targets,
                options,
                open_bank=measuring.opener(source, loaded, train_split),
                progress=progress,
                on_pass=begin,
            )
        title = f"{loaded.name}: {targets.words}"
        caution = "; ".join(warnings(loaded.made_on, data))
        images = f"{data.spec}, {data.split}{caution and f' (warning: {caution})'}"
        context = report_context(title, images, sum(result.images), chosen, dtype != "float32")
        if result.met:
            from tpcli.report.optimized import save_optimized

            with progress.finishing():
                save_optimized(loaded, result, context, out, force=force)
        if as_json:
            where = str(out) if result.met else None
            document = {"model": loaded.name, "out": where, "warning": caution or None}
            render.print_json({**document, **result.to_dict()})
        else:
            _print(result, out, DEMO if model == DEMO else "DATA", caution)
        if not result.met:
            raise TpcliError(f"{result.reason}; nothing was saved.")


def _print(result: Optimized, out: Path, data: str, caution: str) -> None:
    facts = [("verdict", result.verdict), *([("warning", caution)] if caution else [])]
    if result.chosen is not None:
        c = result.chosen.candidate
        images = f"{result.images[0]:,} images of {result.chosen_on}"
        facts += [
            ("method", c.plan.label),
            ("tokens", ", ".join(map(str, c.tokens))),
            ("selection", f"{result.chosen.lost.words} ({images})"),
        ]
    if result.checked is not None:
        facts.append(("held out", f"{result.checked.lost.words} ({result.images[1]:,} images)"))
    if result.forecast_error is not None:
        facts.append(("forecast", f"{100 * result.forecast_error:+.1f}% off"))
    facts.append(("tried", f"{result.compared} schedules compared, {len(result.tried)} raced: "
                           f"{100 * result.work:.0f}% of running all on all images"))  # fmt: skip
    facts += [("nearest", near.words) for near in result.nearest]
    if result.met:
        facts.append(("saved", f"{out}/  (try: {render.eval_command(out, data)})"))
    render.print_facts(facts)
