"""Measure a model and its pooled or trained versions in one way, and the unpooled one once."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tpcli.data import ImageData
from tpcli.errors import TpcliError, UserError
from tpcli.surgery import check_supported, pooling_spec, unpool, unpooled
from tpcli.system.devices import pick_device, synchronize
from tpcli.system.ranks import gathered

from .answers import Answers, collect, features_of, logits_of
from .choose import Task
from .run import Batches, RunOptions, evaluate, images_per_second, shard
from .scores import Scores, agreement, knn, scores, similarity

SHARES = (1 / 4, 1 / 2, 3 / 4, 1)
"""Of the depth, after which features are compared where no blocks are asked for."""


def dense_blocks(model: nn.Module, asked: Sequence[int] | None = None) -> list[int]:
    """The blocks whose features are compared: those asked for, or four, the last among them.

    Raises:
        UserError: a block is not there.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    if asked is None:
        return sorted({max(0, round(share * depth) - 1) for share in SHARES})
    for block in asked:
        if not 0 <= block < depth:
            raise UserError(f"block {block} is not there; the model has blocks 0 to {depth - 1}.")
    return sorted(set(asked))


def dense(
    model: nn.Module,
    base: nn.Module,
    data: ImageData,
    run: RunOptions,
    folder: Path | None = None,
    *,
    blocks: Sequence[int] | None = None,
    decoded: Batches | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """The cosine of each patch's features in both models, a mean over patches and blocks an image.

    base: the model whose features without pooling are held against; it is copied. Beside the score
    stand the means by block, as `block_3`. Arguments as for `collect`.

    Raises:
        UserError: as `dense_blocks` and `evaluate`.
        TpcliError: as `collect`.
    """
    check_supported(model)
    chosen = dense_blocks(model, blocks)
    compared = _Compared(unpool(copy.deepcopy(base)).eval(), chosen)
    found = collect(model, data, compared, run, folder, decoded=decoded, on_batch=on_batch)
    by_block = 100 * found.rows.mean(0, dtype="float64")
    more = {f"block_{i}": float(mean) for i, mean in zip(chosen, by_block, strict=True)}
    speed = images_per_second(compared.times)
    if shard(data, run, decoded):
        speed = sum(gathered(speed))
    return scores("dense", found.rows.mean(1), speed, found.unreadable, **more)


@dataclass
class _Compared:
    """Runs both models on a batch, and times the first of them alone: images and seconds."""

    base: nn.Module
    blocks: list[int]
    times: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Mean cosine over patches: (B, C, H, W) -> (B, blocks)."""
        wanted = self._features(self.base.to(images.device), images)
        synchronize(images.device)
        began = time.perf_counter()
        found = self._features(model, images)
        synchronize(images.device)
        self.times.append((len(images), time.perf_counter() - began))
        cosines = [
            torch.cosine_similarity(ours.float(), theirs.float(), dim=1).flatten(1).mean(1)
            for ours, theirs in zip(found, wanted, strict=True)
        ]
        return torch.stack(cosines, dim=1)

    def _features(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
            images, self.blocks, intermediates_only=True
        )
        return features


OnPass = Callable[[str, int | None], Callable[[int], None]]
"""Called with what begins (nothing for the measurement itself) and its number of images, where
known; returns what is called with the images of each batch done."""


@dataclass(eq=False)
class Measurer:
    """Measures versions of a model by one task.

    What the unpooled model answers is asked once, where it is needed, and kept in a file that goes
    when this does.

    model: whose unpooled answers others are held against. folder: where answers are kept; the
    system's place for temporary files if left out. decode: the batches of a data set where they are
    in memory already.
    """

    model: nn.Module
    task: Task
    run: RunOptions
    folder: Path | None = None
    decode: Callable[[ImageData], Batches | None] = lambda data: None
    _kept: dict[str, Answers] = field(default_factory=dict, init=False)

    def measure(self, model: nn.Module, on_pass: OnPass | None = None) -> Scores:
        """The scores of `model`, pooled or not, on the task's images.

        Raises:
            UserError: as `evaluate`.
            TpcliError: as `collect`.
        """
        task, data = self.task, self.task.data
        if task.measure == "top1":
            decoded, begun = self.decode(data), on_pass("", data.count) if on_pass else None
            found = evaluate(model, data, self.run, decoded=decoded, on_batch=begun)
            ci95, speed = found.top1_ci95, found.images_per_second
            more = {"top1": found.top1, "top1_lo": ci95[0], "top1_hi": ci95[1]}
            more |= {"top5": found.top5, "loss": found.loss}
            return Scores("top1", found.correct, found.top1, ci95, speed, found.unreadable, more)
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
            for images, labels in ((data, queries.targets), (task.bank, bank.targets)):
                if (labels < 0).any():
                    raise UserError(
                        f"images of {images.spec}, {images.split}, have the label "
                        f"{labels.min()}, which hides a class; use another split, or "
                        "`measure=similarity`, which needs no labels."
                    )
            return knn(queries, bank, device)
        wanted = self._unpooled(data, "unpooled", on_pass)
        answers = self._own(model, data, "", on_pass)
        if len(answers.rows) != len(wanted.rows):
            raise TpcliError(
                f"images of {data.spec} changed while they were measured; run it again."
            )
        if task.measure == "agreement":
            return agreement(answers, wanted)
        return similarity(answers, wanted, device)

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
        answer = logits_of if self.task.measure == "agreement" else features_of
        decoded, begun = self.decode(data), on_pass(label, data.count) if on_pass else None
        return collect(model, data, answer, self.run, self.folder, decoded=decoded, on_batch=begun)
