"""Options that say what a model is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tpcli import specs
from tpcli.cli.groups import DATA_PANEL, DataGroup
from tpcli.cli.kinds import SPLIT
from tpcli.cli.values import one_of, option, whole
from tpcli.errors import UserError
from tpcli.measures import MEASURES

if TYPE_CHECKING:
    from tpcli.data import ImageData
    from tpcli.models import LoadedModel

PANEL = "Measure"
KNN_IMAGES = 10_000

TrainSplit = Annotated[
    str, option(SPLIT, "Split of the training images, for knn.", panel=DATA_PANEL)
]


@dataclass(frozen=True)
class MeasureGroup:
    """What a model is measured by."""

    measure: Annotated[
        str | None,
        option(
            one_of(list(MEASURES)),
            f"What is measured: {', '.join(f'{m.name} ({m.about})' for m in MEASURES.values())}.",
            panel=PANEL,
            shown="the first that model and data allow",
        ),
    ] = None
    knn_images: Annotated[
        int | None,
        option(
            whole(2, 10**9),
            "Training images that knn looks for neighbours among, spread evenly.",
            panel=PANEL,
            shown=str(KNN_IMAGES),
        ),
    ] = None
    bank: Annotated[
        str | None,
        option(
            one_of(("pooled", "unpooled")),
            "Whose features of the training images knn uses: pooled (the model's own), or unpooled "
            "(an index that is there already).",
            panel=PANEL,
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

        def open_bank() -> ImageData:
            from tpcli.data import create

            return create(
                source.data or specs.DEMO,
                loaded.data_config,
                split=train_split,
                data_dir=None if source.data_dir is None else str(source.data_dir),
                download=source.download,
                limit=self.knn_images or KNN_IMAGES,
                class_map=source.read_class_map(),
            )

        return open_bank
