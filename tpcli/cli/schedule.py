"""`tpcli schedule`: find the tokens per block for a budget."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpcli.cli.options import (
    DATA_PANEL,
    POOLING_PANEL,
    ForceOption,
    JsonOption,
    MethodGroup,
    ModelArgument,
    ModelGroup,
)
from tpcli.cli.spread import spread

if TYPE_CHECKING:
    from tpcli.data import ImageData
    from tpcli.models import LoadedModel


class By(str, Enum):
    """What a schedule is judged by."""

    kl = "kl"
    significance = "significance"
    reconstruction = "reconstruction"


@dataclass(frozen=True)
class CalibrationGroup:
    """Which images to calibrate on; their labels are not used."""

    data: Annotated[
        str | None,
        typer.Option(
            help="demo, a folder, a .tar, or a timm data set.", rich_help_panel=DATA_PANEL
        ),
    ] = None
    data_dir: Annotated[
        str | None,
        typer.Option(help="Where a named data set is kept.", rich_help_panel=DATA_PANEL),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to calibrate on.",
            show_default="train, else validation",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a named set.", rich_help_panel=DATA_PANEL)
    ] = False
    images: Annotated[
        int, typer.Option(help="Number of images.", min=1, rich_help_panel=DATA_PANEL)
    ] = 256

    def open(self, loaded: LoadedModel) -> ImageData:
        """Open the data, `images` of it, spread evenly."""
        from tpcli.errors import UserError
        from tpcli.search import calibration_data

        if self.data is None and loaded.name != "demo":
            raise UserError(f"model {loaded.name} needs data of its own; add --data.")
        return calibration_data(
            self.data or "demo",
            loaded.data_config,
            images=self.images,
            split=self.split,
            data_dir=self.data_dir,
            download=self.download,
        )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("schedule")(spread(schedule))


def schedule(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: MethodGroup,
    calibration: CalibrationGroup,
    method: Annotated[
        str | None,
        typer.Option(help="Pooling method (tpcli methods).", rich_help_panel=POOLING_PANEL),
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of the base FLOPs, in (0, 1].")] = 0.6,
    by: Annotated[By, typer.Option(help="What a schedule is judged by.")] = By.kl,
    trials: Annotated[int, typer.Option(help="Schedules tried per budget.", min=1)] = 16,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="MODEL-schedule.json")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search tokens per block under a FLOPs budget, on a few images, without labels.

    Example: tpcli schedule deit_small_patch16_224 --data imagenet/ --budget 0.58
    """
    from tpcli.cli import render
    from tpcli.errors import UserError
    from tpcli.files import check_output
    from tpcli.models import base_name
    from tpcli.search import SearchOptions, budgets_with, search

    render.quiet()
    out = out or Path(f"{base_name(model)}-schedule.json")
    if out.suffix != ".json":
        raise UserError(f"--out {str(out)!r} is no .json file; only those are read as schedules.")
    check_output(out, force)
    options = SearchOptions(
        by=by.value,
        images=calibration.images,
        budgets=budgets_with(budget),
        trials=trials,
        batch_size=batch_size,
        device=device,
    )
    chosen = pooling.options(method)
    loaded = loading.load(model)
    data = calibration.open(loaded)
    total = trials * len(options.budgets)
    with render.progress_bar(f"schedule {loaded.name}", total) as advance:
        result = search(
            loaded.model,
            data,
            chosen,
            options,
            checkpoint=out.with_name(f".{out.name}.search"),
            name=loaded.name,
            on_trial=lambda done, of: advance(1),
        )
    found = result.schedule(budget)
    result.save(out, budget, force=force)
    assert found.made_by is not None
    ratio = found.made_by["ratio"]
    if as_json:
        render.print_json({"out": str(out), **result.document(budget)})
        return
    render.print_facts(
        [
            ("model", f"{loaded.name}, pooled by {chosen.method}"),
            ("tokens", ", ".join(map(str, found.tokens))),
            ("FLOPs", f"{100 * float(str(ratio)):.2f}% of the base, budget {100 * budget:g}%"),
            ("judged by", f"{by.value}, {calibration.images} images of {data.spec}, {data.split}"),
            ("family", ", ".join(f"{member.ratio:.2f}" for member in result.members)),
            ("saved", f"{out}  (try: {render.eval_command(model, data.spec, schedule=out)})"),
        ]
    )
