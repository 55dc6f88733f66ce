"""`tpcli schedule`: search the tokens per block for a budget."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tpcli.config.choices import OBJECTIVES, SEARCH_SPACES
from tpcli.config.outputs import SCHEDULE_KIND
from tpcli.config.specs import DEMO, base_name
from tpcli.errors import UserError
from tpcli.system.files import check_output
from tpcli.system.ranks import team
from tpcli.system.resume import Progress, resumable

from . import render
from .field_options import METHOD_HELP, POOLING_PANEL, MethodGroup
from .groups import DeviceOption, ForceOption, JsonOption, ModelArgument, ModelGroup, SourceGroup
from .values import (
    BUDGET,
    MANY,
    METHOD,
    SIZE,
    SPLIT,
    Value,
    checked,
    choice,
    flag,
    named_like,
    number,
    option,
    some_of,
    whole,
)
from .verbosity import note

if TYPE_CHECKING:
    from tpcli.data import ImageData
    from tpcli.models.load import LoadedModel


DEFAULT = 0.6
varied = some_of(SEARCH_SPACES)
VARY = checked(varied, "NAMES", lambda: SEARCH_SPACES)
OUT = Value(named_like((".json",)), "FILE")


@dataclass(frozen=True)
class CalibrationGroup(SourceGroup):
    """Calibration images; their labels are not used."""

    split: Annotated[
        str | None,
        option(SPLIT, "Split of the calibration images.", shown="train, else validation"),
    ] = None
    images: Annotated[int, option(whole(1, MANY), "Number of calibration images.")] = 256

    def open(self, loaded: LoadedModel) -> ImageData:
        """Open the data, `images` of it, spread evenly."""
        from tpcli.search import calibration_data

        return calibration_data(
            self.data or DEMO,
            loaded.data_config,
            images=self.images,
            split=self.split,
            **self.arguments(),
        )


def schedule(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: MethodGroup,
    calibration: CalibrationGroup,
    method: Annotated[str | None, option(METHOD, METHOD_HELP, panel=POOLING_PANEL)] = None,
    budget: Annotated[
        float | None,
        option(
            BUDGET,
            "Target: share of the unpooled model's FLOPs, above 0 and at most 1.",
            shown=f"{DEFAULT:g}",
        ),
    ] = None,
    speedup: Annotated[
        float | None,
        option(
            number(1, 1000),
            "Target instead of a budget: times as fast as unpooled, on this device at "
            "--batch-size.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        choice(OBJECTIVES, "Objective of the search", shown="kl, or similarity without a head"),
    ] = None,
    trials: Annotated[int, option(whole(1, MANY), "Schedules to try per budget.")] = 16,
    vary: Annotated[
        str | None,
        option(
            VARY,
            "Also search, separated by commas: options (of pooling), places (which blocks pool).",
            shown="none",
        ),
    ] = None,
    last_free: Annotated[
        bool,
        flag(
            "Keep one patch token for the last MLP: exact if only the class token is read, useless "
            "for dense features.",
            "--last-free",
        ),
    ] = False,
    out: Annotated[
        Path | None, option(OUT, "Schedule file to write.", shown="MODEL-schedule.json")
    ] = None,
    batch_size: Annotated[int, option(SIZE, "Images in a batch.")] = 64,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search the tokens per block for a FLOPs or time budget, on a few images without labels.

    Examples:
        tpcli schedule deit_small_patch16_224 --data imagenet/ --budget 0.58
        tpcli schedule mine/ --data photos/ --budget 0.4 --vary options,places --out mine.json
    """
    out = out or Path(f"{base_name(model)}-schedule.json")
    if budget is not None and speedup is not None:
        raise UserError("--budget and --speedup can't be combined; give one of them.")
    share = 1 / speedup if speedup else budget or DEFAULT
    chosen = pooling.options(method)
    calibration.require_for(model, calibration.split)
    check = partial(check_output, out, force, kind=SCHEDULE_KIND)
    first = resumable(out, "search", check, note)
    with first if team().is_first else nullcontext(Progress()) as progress:
        from tpcli.bench.clock import BenchOptions, percent
        from tpcli.bench.compare import bench
        from tpcli.search import SearchOptions, budgets_with, search, trials_in
        from tpcli.system.devices import pick_device

        pick_device(device)
        options = SearchOptions(
            by=by,
            images=calibration.images,
            budgets=(share,) if speedup else budgets_with(share),
            trials=trials,
            vary=varied(vary) if vary else (),
            focus=share,
            timing=BenchOptions(batch_size, device) if speedup else None,
            last_free=last_free,
            batch_size=batch_size,
            device=device,
        )
        loaded = loading.load(model)
        data = calibration.open(loaded)
        render.say_left_out(data)
        total = trials_in(options, chosen, len(loaded.model.blocks))  # type: ignore[arg-type]
        with render.progress_bar(f"schedule {loaded.name}", total) as advance:
            result = search(
                loaded.model,
                data,
                chosen,
                options,
                progress=progress,
                name=loaded.name,
                on_trial=lambda done, of: advance(1),
                sharded=True,
            )
        if not team().is_first:
            return
        with progress.finishing():
            result.save(out, share, force=force)
        found = result.schedule(share)
        assert found.made_by is not None
        ratio = float(str(found.made_by["ratio"]))
        timed: dict[str, float] = {}
        cost = ("FLOPs", f"{100 * ratio:.2f}% of the base, budget {100 * share:g}%")
        if options.timing is not None:
            with render.progress_bar("timing", 100) as advance:
                speed = bench(
                    loaded.model, found, result.options, options.timing, percent(advance)
                ).speedup
            timed = {"speedup": speed, "forecast_speedup": 1 / ratio}
            cost = ("speed", f"{speed:.2f}x, by forecast {1 / ratio:.2f}x, target {speedup:g}x")
        last_block = []
        if result.cost.last_free:
            saved = f"{100 * result.last_free_saving(found.tokens):.2f}%"
            last_block = [
                ("last block", f"one patch token is left for its MLP, which saves {saved}")
            ]
        if as_json:
            render.print_json({"out": str(out), **result.document(share), **timed})
            return
        render.print_facts(
            [
                ("model", f"{loaded.name}, pooled by {chosen.method}"),
                ("tokens", ", ".join(map(str, found.tokens))),
                cost,
                (
                    "judged by",
                    f"{result.made_by['by']}, {calibration.images} images of {data.spec}, "
                    f"{data.split}",
                ),
                ("family", ", ".join(f"{member.ratio:.2f}" for member in result.members)),
                *last_block,
                ("verdict", result.verdict),
                ("saved", f"{out}  (try: {render.eval_command(model, data.spec, schedule=out)})"),
            ]
        )
