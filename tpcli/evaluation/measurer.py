"""Measure a model and its pooled or trained versions in one way, and the unpooled one once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from tpcli.data import ImageData
from tpcli.errors import TpcliError, UserError
from tpcli.surgery import pooling_spec, unpooled
from tpcli.system.devices import pick_device

from .answers import Answers, collect, features_of, logits_of
from .choose import Task
from .dense import dense
from .run import Batches, RunOptions, evaluate
from .scores import Scores, agreement, knn, similarity

OnPass = Callable[[str, int | None], Callable[[int], None]]
"""Called with what begins (nothing for the measurement itself) and its number of images, where
known; returns what is called with the images of each batch done."""


class Measurer:
    """Measures versions of a model by one task.

    What the unpooled model answers is asked once, where it is needed, and kept in a file that goes
    when this does.

    Args:
        model: whose unpooled answers others are held against.
        folder: where answers are kept; the system's place for temporary files if left out.
        decode: the batches of a data set where they are in memory already.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        run: RunOptions,
        folder: Path | None = None,
        decode: Callable[[ImageData], Batches | None] = lambda data: None,
    ) -> None:
        self.model = model
        self.task = task
        self.run = run
        self.folder = folder
        self.decode = decode
        self._kept: dict[str, Answers] = {}

    def measure(self, model: nn.Module, on_pass: OnPass | None = None) -> Scores:
        """The scores of `model`, pooled or not, on the task's images.

        Raises:
            UserError: as `evaluate`.
            TpcliError: as `collect`.
        """
        task, data = self.task, self.task.data
        if task.measure == "top1":
            return self._top1(model, on_pass)
        if task.measure == "dense":
            begun = on_pass("", data.count) if on_pass else None
            return dense(
                model, self.model, data, self.run, self.folder,
                blocks=task.blocks, decoded=self.decode(data), on_batch=begun,
            )  # fmt: skip
        device = pick_device(self.run.device)
        if task.measure == "knn":
            assert task.bank is not None
            queries = self._own(model, data, "", on_pass)
            if task.bank_of == "unpooled":
                bank = self._unpooled(task.bank, "the unpooled bank", on_pass)
            else:
                bank = self._own(model, task.bank, "the bank", on_pass)
            for answers, images in ((queries, data), (bank, task.bank)):
                if (answers.targets < 0).any():
                    raise UserError(
                        f"images of {images.spec}, {images.split}, have the label "
                        f"{answers.targets.min()}, which hides a class; use another split, or "
                        "`measure=similarity`, which needs no labels."
                    )
            return knn(queries, bank, device)
        wanted = self._unpooled(data, "unpooled", on_pass)
        found = self._own(model, data, "", on_pass)
        if len(found.rows) != len(wanted.rows):
            raise TpcliError(
                f"images of {data.spec} changed while they were measured; run it again."
            )
        if task.measure == "agreement":
            return agreement(found, wanted)
        return similarity(found, wanted, device)

    def _top1(self, model: nn.Module, on_pass: OnPass | None) -> Scores:
        data, run = self.task.data, self.run
        decoded, begun = self.decode(data), on_pass("", data.count) if on_pass else None
        result = evaluate(model, data, run, decoded=decoded, on_batch=begun)
        low, high = result.top1_ci95
        more = {"top1": result.top1, "top1_lo": low, "top1_hi": high}
        return Scores(
            "top1",
            result.correct,
            result.top1,
            result.top1_ci95,
            result.images_per_second,
            result.unreadable,
            {**more, "top5": result.top5, "loss": result.loss},
        )

    def _own(
        self, model: nn.Module, data: ImageData, label: str, on_pass: OnPass | None
    ) -> Answers:
        """What `model` answers; what is kept where it is the unpooled model itself."""
        spec = pooling_spec(model)
        if model is self.model and not (spec is not None and spec.schedule.pools):
            return self._unpooled(data, label, on_pass)
        return self._asked(model, data, label, on_pass)

    def _unpooled(self, data: ImageData, label: str, on_pass: OnPass | None) -> Answers:
        if data.split not in self._kept:
            with unpooled(self.model):
                self._kept[data.split] = self._asked(self.model, data, label, on_pass)
        return self._kept[data.split]

    def _asked(
        self, model: nn.Module, data: ImageData, label: str, on_pass: OnPass | None
    ) -> Answers:
        answer: Callable[[nn.Module, Tensor], Tensor] = features_of
        if self.task.measure == "agreement":
            answer = logits_of
        return collect(
            model,
            data,
            answer,
            self.run,
            self.folder,
            decoded=self.decode(data),
            on_batch=on_pass(label, data.count) if on_pass else None,
        )
