"""Option groups shared by commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpcli import specs
from tpcli.cli.kinds import (
    DATA,
    DEVICE,
    DEVICES,
    MODEL,
    MODEL_ARGUMENT,
    SIZE,
    SPLIT,
)
from tpcli.cli.values import FILE, FOLDER, flag, option, whole
from tpcli.errors import UserError
from tpcli.splits import SPLITS

if TYPE_CHECKING:
    from tpcli.data import ImageData
    from tpcli.models import LoadedModel

MODEL_PANEL, DATA_PANEL, RUN_PANEL = "Model", "Data", "Run"


DEVICE_HELP = f"Where it runs: {', '.join(DEVICES)}."

ModelArgument = Annotated[
    str,
    typer.Argument(
        help="demo, a timm name, hf-hub:org/name, or a folder with config.json.",
        metavar=MODEL.metavar,
        parser=MODEL.parse,
        autocompletion=MODEL.complete,
    ),
]
JsonOption = Annotated[bool, flag("One JSON document on stdout.", "--json")]
ForceOption = Annotated[bool, flag("Replace an existing output.", "--force")]
DeviceOption = Annotated[str, option(DEVICE, DEVICE_HELP, panel=RUN_PANEL)]


@dataclass(frozen=True)
class ModelGroup:
    """How the model is loaded."""

    checkpoint: Annotated[
        Path | None,
        option(FILE, "Weights: .safetensors, or .pth of weights.", panel=MODEL_PANEL),
    ] = None
    pretrained: Annotated[bool, flag("Take pretrained weights.", panel=MODEL_PANEL)] = True
    img_size: Annotated[
        int | None, option(whole(1, 8192), "Image size in pixels.", panel=MODEL_PANEL)
    ] = None
    num_classes: Annotated[
        int | None, option(whole(0), "Classes of a new head; 0: none.", panel=MODEL_PANEL)
    ] = None
    model_kwargs: Annotated[
        list[str] | None,
        option(
            MODEL_ARGUMENT,
            "More for timm: name=value.",
            panel=MODEL_PANEL,
        ),
    ] = None

    def load(self, model: str) -> LoadedModel:
        """Load `model`."""
        from tpcli.models import load

        return load(
            model,
            checkpoint=self.checkpoint,
            pretrained=self.pretrained,
            img_size=self.img_size,
            num_classes=self.num_classes,
            model_kwargs=specs.parse_model_kwargs(self.model_kwargs or []),
        )


@dataclass(frozen=True)
class SourceGroup:
    """Where images are from."""

    data: Annotated[
        str | None,
        option(
            DATA, "demo, a folder or .tar of images, or a timm data set such as torch/cifar10.",
            panel=DATA_PANEL,
        ),
    ] = None  # fmt: skip
    data_dir: Annotated[
        Path | None, option(FOLDER, "Where a named data set is kept.", panel=DATA_PANEL)
    ] = None
    download: Annotated[bool, flag("Fetch a named set.", "--download", panel=DATA_PANEL)] = False

    def require_for(self, model: str, *splits: str | None) -> None:
        """Fail before `model` is loaded where there is no data for it, or no such split."""
        if self.data is None and model != specs.DEMO:
            raise UserError(
                f"model {model!r} needs data of its own; add --data (demo is built in)."
            )
        for split in splits:
            if split is not None:
                specs.check_split(self.data or specs.DEMO, split)


@dataclass(frozen=True)
class DataGroup(SourceGroup):
    """Which images."""

    split: Annotated[
        str, option(SPLIT, f"Split to measure on, such as {', '.join(SPLITS)}.", panel=DATA_PANEL)
    ] = "validation"
    limit: Annotated[
        int | None, option(whole(1, 10**9), "At most N images, spread evenly.", panel=DATA_PANEL)
    ] = None

    class_map: Annotated[
        Path | None,
        option(
            FILE,
            "Which folder is which class of the head: .txt (a folder a line), .csv or .json "
            "(folder, index).",
            panel=DATA_PANEL,
        ),
    ] = None

    def open(self, loaded: LoadedModel) -> ImageData:
        """Open the data, prepared for this model; targets are positions of class folders."""
        from tpcli.data import create

        return create(
            self.data or specs.DEMO,
            loaded.data_config,
            split=self.split,
            data_dir=None if self.data_dir is None else str(self.data_dir),
            download=self.download,
            limit=self.limit,
            class_map=self.read_class_map(),
        )

    def read_class_map(self) -> dict[str, int] | None:
        """The class map, where one was given."""
        from tpcli.data import read_class_map

        return None if self.class_map is None else read_class_map(self.class_map)


@dataclass(frozen=True)
class RunGroup:
    """On what, and how fast."""

    batch_size: Annotated[int, option(SIZE, "Images in a batch.", panel=RUN_PANEL)] = 128
    device: DeviceOption = "auto"
    amp: Annotated[bool, flag("16-bit autocast.", "--amp/--no-amp", panel=RUN_PANEL)] = False
    workers: Annotated[
        int, option(whole(0, 256), "Processes that decode images.", panel=RUN_PANEL)
    ] = 2
    strict: Annotated[bool, flag("Stop at an unreadable image.", "--strict", panel=RUN_PANEL)] = (
        False
    )
