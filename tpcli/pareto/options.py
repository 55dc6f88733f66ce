"""Options of a sweep: models with their images, and curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpcli.bench.clock import BenchOptions
from tpcli.config.choices import DEFAULT_FAMILY
from tpcli.config.options import PoolingOptions
from tpcli.config.recipe import Recipe
from tpcli.data import ImageData
from tpcli.evaluation.choose import MeasuredModel
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import LoadedModel

if TYPE_CHECKING:
    from tpcli.finetune import TrainingData


@dataclass(frozen=True)
class ModelSource:
    """A model of the sweep and the images it is measured on.

    training: images to fine-tune on. calibration: images to search schedules on. Both only where
    the sweep needs them. open_bank: opens the training images for `knn`.
    """

    loaded: LoadedModel
    data: ImageData
    training: TrainingData | None = None
    calibration: ImageData | None = None
    open_bank: Callable[[], ImageData] | None = None

    @property
    def candidate(self) -> MeasuredModel:
        """For the choice of a measure."""
        return MeasuredModel(self.loaded.model, self.loaded.name, self.data, self.open_bank)


@dataclass(frozen=True)
class SweepOptions:
    """What to measure besides the models.

    poolings: one curve each. budgets: shares of the base FLOPs, one point each. schedules: further
    schedule specs, one point each. families: of schedules that budgets are met in, one curve of
    each method for each; "search" searches schedules for each method. recipe: fine-tune every
    point of the first family, and the models without pooling, and measure before and after. run:
    how models run over images. measure: by its name; None for the first that all models and data
    allow. bank: whose features `knn` searches, "pooled" or "unpooled". timing: time all points too.
    """

    poolings: Sequence[PoolingOptions]
    budgets: Sequence[float] = ()
    schedules: Sequence[str] = ()
    families: Sequence[str] = (DEFAULT_FAMILY,)
    recipe: Recipe | None = None
    run: RunOptions = field(default_factory=RunOptions)
    measure: str | None = None
    bank: str = "pooled"
    timing: BenchOptions | None = None
