"""Selection images, in parts, and held-out images; scores of models on each."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from tpcli.config.measures import MEASURES
from tpcli.data import ImageData, batches, count_of, overlap, subset
from tpcli.errors import UserError
from tpcli.evaluation.choose import Task
from tpcli.evaluation.measurer import Measurer, OnPass
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores
from tpcli.stats import Each, images_for, narrowest
from tpcli.system.devices import free_memory

from .options import Targets
from .race import LOOKS

LEAST = 16
"""Fewest images in a half."""


class Halves:
    """Selection images in parts, and held-out images for one check.

    They are two random halves of the task's images; or, where a half is too small for the
    targets, the training split and all of the task's images, if these are others.

    Args:
        training: the same task on the training split, None where there is none.

    Raises:
        UserError: there are too few images for the targets, or at all; says how many it takes.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        run: RunOptions,
        targets: Targets,
        seed: int,
        training: Callable[[], Task | None],
    ) -> None:
        self._run = run
        self._bank = task.bank
        self._decoded: tuple[ImageData | None, list[tuple[Tensor, Tensor]] | None] = (None, None)
        count = count_of(task.data, "optimize")
        order = np.random.default_rng(seed).permutation(count)
        chosen, held_out = subset(task.data, order[: count // 2].tolist()), order[count // 2 :]
        if not _enough(task, count // 2, targets):
            other = training()
            size = count_of(other.data, "optimize") if other else 0
            if other is None or not _enough(other, size, targets) or overlap(other.data, task.data):
                raise _too_few(task, count, targets)
            shuffled = np.random.default_rng(seed).permutation(size)
            chosen, held_out = subset(other.data, shuffled.tolist()), np.arange(count)
        self.choice = chosen
        self.images = (count_of(chosen, "optimize"), len(held_out))
        # a bank is searched again for each part, so there is one part alone
        looks = LOOKS if task.bank is None else LOOKS[-1:]
        ends = [0, *(max(1, round(look * self.images[0])) for look in looks)]
        parts = [subset(chosen, range(a, b)) for a, b in itertools.pairwise(ends)]
        parts.append(subset(task.data, sorted(held_out.tolist())))
        self._measurers = [
            Measurer(model, replace(task, data=part), run, decode=self._decode) for part in parts
        ]

    @property
    def parts(self) -> int:
        """Number of selection parts; the held-out part comes after them."""
        return len(self._measurers) - 1

    def measure(self, model: nn.Module, part: int, on_pass: OnPass | None) -> Scores:
        """Scores of a model, pooled or not, on a part."""
        return self._measurers[part].measure(model, on_pass)

    def identity(self, part: int) -> list[Any]:
        """What is measured on a part, and on which images with which labels."""
        task = self._measurers[part].task
        bank = task.bank and task.bank.fingerprint
        return [task.measure, task.data.fingerprint, bank, task.bank_of]

    def _decode(self, data: ImageData) -> list[tuple[Tensor, Tensor]] | None:
        """A part's images where they fit in a quarter of the free memory, one part at a time."""
        if data is self._bank:
            return None
        if self._decoded[0] is not data:
            self._decoded = (data, None)
            size = (data.count or 0) * int(np.prod(data.config["input_size"]))
            if size < free_memory() / 4:
                images = list(batches(data, self._run.batch_size, self._run.workers))
                self._decoded = (data, images)
        return self._decoded[1]


def _enough(task: Task, count: int, targets: Targets) -> bool:
    if count < LEAST:
        return False
    if targets.max_drop is None or targets.risk != "upper" or not MEASURES[task.measure].is_share:
        return True
    return narrowest(count) <= targets.max_drop


def _too_few(task: Task, count: int, targets: Targets) -> UserError:
    what = f"the {task.data.split} split of {task.data.spec} has {count:,} images"
    if count // 2 < LEAST or targets.max_drop is None:
        return UserError(
            f"{what}, too few to choose on one half and check on the other; give at least "
            f"{2 * LEAST}."
        )
    wanted = targets.max_drop or 0.1
    zero = "" if targets.max_drop else "a drop of 0 can't be promised from any number of them, and "
    return UserError(
        f"{what}, half of which can promise no less than {narrowest(count // 2):.2f} points; "
        f"{zero}max_drop {wanted:g} takes at least {2 * images_for(wanted):,}, or `risk=mean`."
    )


def packed(each: Each) -> dict[str, Any]:
    """Scores of images as JSON holds them."""
    is_share = each.dtype == bool
    raw = np.packbits(each) if is_share else each.astype("<f4")
    text = base64.b64encode(raw.tobytes()).decode()
    return {"count": len(each), "is_share": is_share, "each": text}


def unpacked(values: Mapping[str, Any]) -> Each:
    """What `packed` was given."""
    raw = base64.b64decode(values["each"])
    if not values["is_share"]:
        return np.frombuffer(raw, dtype="<f4")
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=values["count"])
    return bits.astype(bool)
