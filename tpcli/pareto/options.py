"""What a sweep is asked for: models with their images, and the curves that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpcli.config.choices import DEFAULT_FAMILY
from tpcli.config.options import PoolingOptions
from tpcli.config.recipe import Recipe
from tpcli.data import ImageData
from tpcli.evaluation.choose import Candidate
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import LoadedModel

if TYPE_CHECKING:
    from tpcli.finetune import TrainingData


@dataclass(frozen=True)
class ModelSource:
    """A model of the sweep and the images it is measured on.

    training: what it is fine-tuned on. calibration: what schedules are searched on. Both only where
    the sweep asks for it. open_bank: opens the training images for `knn`.
    """

    loaded: LoadedModel
    data: ImageData
    training: TrainingData | None = None
    calibration: ImageData | None = None
    open_bank: Callable[[], ImageData] | None = None

    @property
    def candidate(self) -> Candidate:
        """What measures are chosen for."""
        return Candidate(self.loaded.model, self.loaded.name, self.data, self.open_bank)


@dataclass(frozen=True)
class SweepOptions:
    """What to measure besides the models.

    poolings: how to pool, one curve each. budgets: shares of the base FLOPs, one point each.
    schedules: further schedule specs, one point each. families: that each budget is measured in;
    the best of them is its method's entry. search stands for one that is found by a search, one for
    each method. recipe: fine-tune every point of the first family, the models without pooling too,
    and measure it before and after. measure: by its name; None for the first that all models and
    data allow. bank: whose features `knn` seeks neighbours among, "pooled" or "unpooled".
    """

    poolings: Sequence[PoolingOptions]
    budgets: Sequence[float] = ()
    schedules: Sequence[str] = ()
    families: Sequence[str] = (DEFAULT_FAMILY,)
    recipe: Recipe | None = None
    run: RunOptions = field(default_factory=RunOptions)
    measure: str | None = None
    bank: str = "pooled"
