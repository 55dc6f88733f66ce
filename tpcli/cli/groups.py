"""Option groups shared by commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tpcli.config import specs
from tpcli.config.choices import AXES, BANKS, DEVICES, FIGURE_STYLES
from tpcli.config.measures import MEASURES
from tpcli.config.specs import SPLITS
from tpcli.errors import UserError

from .render import quiet
from .values import (
    DATA,
    DEVICE,
    FIGURE,
    FILE,
    FOLDER,
    MODEL,
    MODEL_ARGUMENT,
    SIZE,
    SPLIT,
    TEXT,
    argument,
    choice,
    flag,
    number,
    one_of,
    option,
    whole,
)

if TYPE_CHECKING:
    import torch

    from tpcli.bench.clock import BenchOptions
    from tpcli.data import ImageData
    from tpcli.evaluation.run import RunOptions
    from tpcli.models.load import LoadedModel


DATA_PANEL, MEASURE_PANEL, RUN_PANEL = "Data", "Measure", "Run"
DEVICE_HELP = f"Device: {', '.join(DEVICES)}, or one of several such as cuda:1."

ModelArgument = Annotated[
    str,
    argument(MODEL, "demo, a timm model name, hf-hub:org/name, or a model folder (config.json)."),
]
JsonOption = Annotated[bool, flag("Print one JSON document on stdout.", "--json")]
ForceOption = Annotated[
    bool,
    flag(
        "Replace an existing output of this command; files of other origin are never replaced.",
        "--force",
    ),
]
DeviceOption = Annotated[str, option(DEVICE, DEVICE_HELP, panel=RUN_PANEL)]


@dataclass(frozen=True)
class ModelGroup:
    """How the model is loaded."""

    PANEL = "Model"

    checkpoint: Annotated[
        Path | None, option(FILE, "Checkpoint to load: .safetensors, or a .pth of plain weights.")
    ] = None
    pretrained: Annotated[bool, flag("Load pretrained weights.")] = True
    img_size: Annotated[
        int | None, option(whole(1, 8192), "Image size in pixels, a multiple of the patch size.")
    ] = None
    num_classes: Annotated[
        int | None, option(whole(0), "Number of classes of a new head; 0 for no head.")
    ] = None
    model_kwargs: Annotated[
        list[str] | None,
        option(MODEL_ARGUMENT, "Extra argument of timm.create_model; repeat for more."),
    ] = None

    def load(self, model: str) -> LoadedModel:
        """Load `model`."""
        from tpcli.models.load import load

        quiet()  # once more, as huggingface_hub sets its level when it is imported
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
    """Where images come from."""

    PANEL = DATA_PANEL

    data: Annotated[
        str | None,
        option(
            DATA, "demo, a folder or .tar of images, or a timm data set such as torch/cifar10."
        ),
    ] = None  # fmt: skip
    data_dir: Annotated[Path | None, option(FOLDER, "Folder where a timm data set is stored.")] = (
        None
    )
    download: Annotated[bool, flag("Download a timm data set.", "--download")] = False
    input_key: Annotated[str | None, option(TEXT, "Column of the images in a timm data set.")] = (
        None
    )
    target_key: Annotated[str | None, option(TEXT, "Column of the labels in a timm data set.")] = (
        None
    )
    pixel_max: Annotated[
        float | None,
        option(
            number(1e-6, 1e12),
            "White level of images with more than 8 bits, such as 4095 of a 12-bit sensor.",
            shown="estimated from the images",
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """How the data are opened, for the library."""
        given = {item.name: getattr(self, item.name) for item in fields(SourceGroup)[1:]}
        return {**given, "data_dir": self.data_dir and str(self.data_dir)}

    def open_split(
        self,
        loaded: LoadedModel,
        split: str,
        limit: int | None,
        class_map: dict[str, int] | None = None,
    ) -> ImageData:
        """Open a split, prepared for this model; targets are positions of class folders."""
        from tpcli.data import create

        config, more = loaded.data_config, self.arguments()
        data = self.data or specs.DEMO
        return create(data, config, split=split, limit=limit, class_map=class_map, **more)

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
        str,
        option(SPLIT, f"Split to evaluate: {', '.join(SPLITS)}, or a name of the data set's own."),
    ] = "validation"
    limit: Annotated[
        int | None, option(whole(1, 10**9), "Use at most N images, evenly spaced over the split.")
    ] = None

    class_map: Annotated[
        Path | None,
        option(
            FILE,
            "File that maps class folders to class indices of the head: .txt (one folder a line), "
            ".csv or .json (folder, index).",
        ),
    ] = None

    def open(self, loaded: LoadedModel) -> ImageData:
        """Open the split to evaluate."""
        return self.open_split(loaded, self.split, self.limit, self.read_class_map())

    def read_class_map(self) -> dict[str, int] | None:
        """The class map, where one was given."""
        from tpcli.data import read_class_map

        return None if self.class_map is None else read_class_map(self.class_map)


@dataclass(frozen=True)
class RunGroup:
    """How models run over images."""

    PANEL = RUN_PANEL

    batch_size: Annotated[int, option(SIZE, "Images in a batch.")] = 128
    device: DeviceOption = "auto"
    amp: Annotated[bool, flag("Use 16-bit autocast.", "--amp/--no-amp")] = False
    workers: Annotated[int, option(whole(0, 256), "Worker processes that decode images.")] = 2
    strict: Annotated[bool, flag("Stop at the first unreadable image.", "--strict")] = False

    def options(self, device: str | torch.device, *, sharded: bool = False) -> RunOptions:
        """The same on the device that was picked."""
        from tpcli.evaluation.run import RunOptions

        return RunOptions(**{**vars(self), "device": device}, sharded=sharded)


KNN_IMAGES = 10_000

TrainSplit = Annotated[
    str, option(SPLIT, "Split of the training images that knn searches.", panel=DATA_PANEL)
]


@dataclass(frozen=True)
class MeasureGroup:
    """Which measure scores a model."""

    PANEL = MEASURE_PANEL

    measure: Annotated[
        str | None,
        option(
            one_of(list(MEASURES)),
            f"Measure: {', '.join(f'{m.name} ({m.about})' for m in MEASURES.values())}.",
            shown="the first that model and data allow",
        ),
    ] = None
    knn_images: Annotated[
        int | None,
        option(
            whole(2, 10**9),
            "Number of training images that knn searches, evenly spaced.",
            shown=str(KNN_IMAGES),
        ),
    ] = None
    bank: Annotated[
        str | None,
        option(
            one_of(BANKS),
            "Features of the training images for knn: pooled (by the pooled model), or unpooled "
            "(an index that exists already).",
            shown="pooled",
        ),
    ] = None

    @property
    def asked(self) -> str | None:
        """The measure that was asked for; options of knn ask for it."""
        of_knn = self.knn_images is not None or self.bank is not None
        return self.measure or ("knn" if of_knn else None)

    def check(self) -> None:
        """Fail where options of knn are given for another measure."""
        for name, value in (("--knn-images", self.knn_images), ("--bank", self.bank)):
            if value is not None and self.measure not in (None, "knn"):
                raise UserError(
                    f"{name} {value} has no effect on --measure {self.measure}; leave it out, or "
                    "use --measure knn."
                )

    def opener(
        self, source: DataGroup, loaded: LoadedModel, train_split: str
    ) -> Callable[[], ImageData]:
        """What opens the training images, prepared as those that are measured on."""
        limit = self.knn_images or KNN_IMAGES
        return lambda: source.open_split(loaded, train_split, limit, source.read_class_map())


BATCH_SIZE = 16
SECONDS = 2.0
"""For each point that is timed."""


@dataclass(frozen=True)
class ReportGroup:
    """What the report shows, and its files."""

    PANEL = "Report"

    x: Annotated[
        str,
        choice(AXES, "Horizontal axis", "--x", end="; speed from the evaluation, or from --bench."),
    ] = "gflops"
    bench: Annotated[
        bool,
        flag("Also time every point, all points of a model in one interleaved run.", "--bench"),
    ] = False
    bench_batch_size: Annotated[
        int | None, option(SIZE, "Images in a timed batch; implies --bench.", shown="16")
    ] = None
    out: Annotated[
        Path,
        option(
            FIGURE, "Figure to write: .png, .svg or .pdf; .csv, .json, .md and .html go beside it."
        ),
    ] = Path("pareto.png")
    style: Annotated[
        str,
        option(
            one_of(FIGURE_STYLES),
            "Figure style: screen, or paper (one column wide, with a LaTeX table beside it).",
        ),
    ] = "screen"

    @property
    def is_paper(self) -> bool:
        """Whether the figure is for a paper."""
        return self.style == "paper"

    def timing(self, device: str, amp: bool) -> BenchOptions | None:
        """How each point is timed, if at all."""
        from tpcli.bench.clock import BenchOptions
        from tpcli.system.devices import pick_device, sixteen_bit_type

        if not self.bench and self.bench_batch_size is None:
            return None
        kind = sixteen_bit_type(pick_device(device)) if amp else "float32"
        dtype = str(kind).removeprefix("torch.")
        size = self.bench_batch_size or BATCH_SIZE
        return BenchOptions(size, device, dtype, seconds=SECONDS)
