"""Option groups shared by commands."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tpcli.data import ImageData
    from tpcli.models import LoadedModel
    from tpcli.options import PoolingOptions

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="demo, a timm name, hf-hub:org/name, or a folder with config.json.", metavar="[MODEL]"
    ),
]
DEFAULT_SCHEDULE = "flops:0.6"

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]

MODEL_PANEL, POOLING_PANEL, DATA_PANEL, RUN_PANEL = "Model", "Pooling", "Data", "Run"


@dataclass(frozen=True)
class ModelGroup:
    """How the model is loaded."""

    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Weights: .safetensors, or .pth of weights.", rich_help_panel=MODEL_PANEL
        ),
    ] = None
    pretrained: Annotated[
        bool, typer.Option(help="Take pretrained weights.", rich_help_panel=MODEL_PANEL)
    ] = True
    img_size: Annotated[
        int | None, typer.Option(help="Image size in pixels.", rich_help_panel=MODEL_PANEL)
    ] = None
    num_classes: Annotated[
        int | None,
        typer.Option(help="Classes of a new head; 0: none.", min=0, rich_help_panel=MODEL_PANEL),
    ] = None
    model_kwargs: Annotated[
        list[str] | None,
        typer.Option(help="More for timm: name=value.", rich_help_panel=MODEL_PANEL),
    ] = None

    def load(self, model: str) -> LoadedModel:
        """Load `model`."""
        from tpcli.models import load, parse_model_kwargs

        return load(
            model,
            checkpoint=self.checkpoint,
            pretrained=self.pretrained,
            img_size=self.img_size,
            num_classes=self.num_classes,
            model_kwargs=parse_model_kwargs(self.model_kwargs or []),
        )


@dataclass(frozen=True)
class MethodGroup:
    """How tokens are pooled, apart from the method's name and the schedule."""

    metric: Annotated[
        str | None,
        typer.Option(help="Distances on: tokens, normalized, keys.", rich_help_panel=POOLING_PANEL),
    ] = None
    metric_dim: Annotated[
        int | None,
        typer.Option(help="Channels of a random projection.", rich_help_panel=POOLING_PANEL),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weight of a token: size, significance, uniform, class.",
            rich_help_panel=POOLING_PANEL,
        ),
    ] = None
    start: Annotated[
        str | None,
        typer.Option(help="Start: top-k, matching, even, ward.", rich_help_panel=POOLING_PANEL),
    ] = None
    reduce: Annotated[
        str | None,
        typer.Option(
            help="A cluster becomes its: mean, norm (mean as long as its members), "
            "significance (mean), medoid.",
            rich_help_panel=POOLING_PANEL,
        ),
    ] = None
    iterations: Annotated[
        int | None, typer.Option(help="Steps of the method.", rich_help_panel=POOLING_PANEL)
    ] = None
    position: Annotated[
        str | None,
        typer.Option(
            help="Pool after the block, or inside after its attention: block, attention.",
            rich_help_panel=POOLING_PANEL,
        ),
    ] = None
    proportional_attention: Annotated[
        bool | None,
        typer.Option(
            "--proportional-attention/--no-proportional-attention",
            help="Count a token as often as its size.",
            rich_help_panel=POOLING_PANEL,
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """What the user typed; the rest takes the method's defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(MethodGroup)}
        return {name: value for name, value in values.items() if value is not None}

    def options(self, method: str | None) -> PoolingOptions:
        """Complete options for `method`."""
        from tpcli.options import pooling_options

        return pooling_options(method, **self.given)


@dataclass(frozen=True)
class PoolingGroup(MethodGroup):
    """How, and how much."""

    schedule: Annotated[
        str | None,
        typer.Option(
            help="flops:0.6, r:13, r:13-0, keep:0.7@3,6,9, tokens:..., FILE.json, none.",
            rich_help_panel=POOLING_PANEL,
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(help="Pooling method (tpcli methods).", rich_help_panel=POOLING_PANEL),
    ] = None

    def apply_to(self, loaded: LoadedModel, default_schedule: str | None = None) -> None:
        """Pool the model as asked; leave it as it was loaded where nothing was asked.

        Options given for a model that is pooled already replace its own, one by one; so does the
        method of a schedule file.
        """
        from tpcli.options import options_from_dict
        from tpcli.schedule import file_method
        from tpcli.surgery import pool, pooling_spec

        own = pooling_spec(loaded.model)
        if own is None:
            asked = self.method is not None or bool(self.given)
            schedule = self.schedule or (DEFAULT_SCHEDULE if asked else default_schedule)
            if schedule is not None:
                pool(loaded.model, schedule, self.method, **self.given)
        elif self.schedule is not None or self.method is not None or self.given:
            if self.method is None and not file_method(self.schedule):
                options = options_from_dict(own.options.to_dict(), **self.given)
                pool(loaded.model, self.schedule or own.schedule, options)
            else:
                pool(loaded.model, self.schedule or own.schedule, self.method, **self.given)


@dataclass(frozen=True)
class DataGroup:
    """Which images."""

    data: Annotated[
        str | None,
        typer.Option(
            help="demo, a folder, a .tar, or a timm data set such as torch/cifar10.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    data_dir: Annotated[
        str | None,
        typer.Option(help="Where a named data set is kept.", rich_help_panel=DATA_PANEL),
    ] = None
    split: Annotated[str, typer.Option(help="Split to measure on.", rich_help_panel=DATA_PANEL)] = (
        "validation"
    )
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a named set.", rich_help_panel=DATA_PANEL)
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(help="At most N images, spread evenly.", rich_help_panel=DATA_PANEL),
    ] = None

    def require_for(self, model: str) -> None:
        """Fail before `model` is loaded where there is no data for it."""
        from tpcli.errors import UserError

        if self.data is None and model != "demo":
            raise UserError(
                f"model {model!r} needs data of its own; add --data (demo is built in)."
            )

    def open(self, loaded: LoadedModel) -> ImageData:
        """Open the data for this model, and hold its classes against the head."""
        from tpcli.data import check_classes, create

        data = create(
            self.data or "demo",
            loaded.data_config,
            split=self.split,
            data_dir=self.data_dir,
            download=self.download,
            limit=self.limit,
        )
        check_classes(data, int(loaded.model.num_classes), loaded.name)  # type: ignore[arg-type]
        return data


@dataclass(frozen=True)
class RunGroup:
    """On what, and how fast."""

    batch_size: Annotated[
        int, typer.Option(help="Images in a batch.", min=1, rich_help_panel=RUN_PANEL)
    ] = 128
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, mps.", rich_help_panel=RUN_PANEL)
    ] = "auto"
    amp: Annotated[
        bool, typer.Option("--amp/--no-amp", help="16-bit autocast.", rich_help_panel=RUN_PANEL)
    ] = False
    workers: Annotated[
        int, typer.Option(help="Processes that decode images.", min=0, rich_help_panel=RUN_PANEL)
    ] = 2
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Stop at an unreadable image.", rich_help_panel=RUN_PANEL),
    ] = False


def method_names(items: list[str] | None) -> list[str]:
    """Names from `--method`, repeated or separated by commas, each once.

    Raises:
        UserError: an empty name.
    """
    from tpcli.errors import UserError

    names = [name.strip() for item in items or [] for name in item.split(",")]
    if "" in names:
        raise UserError(
            f"--method {','.join(items or [])!r} has an empty name; give names (tpcli methods) "
            "with one comma between them."
        )
    return list(dict.fromkeys(names))


def check_figure(out: Path) -> None:
    """Raise unless `out` is named like a figure.

    Raises:
        UserError: another suffix; lists those there are.
    """
    from tpcli.errors import UserError
    from tpcli.report import SUFFIXES

    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out} has no known suffix; use one of {', '.join(SUFFIXES)}.")
