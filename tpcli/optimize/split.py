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
from tpcli.config.schedule import Schedule
from tpcli.data import ImageData, batches, count_of, overlap, subset
from tpcli.errors import UserError
from tpcli.evaluation.choose import Task
from tpcli.evaluation.measurer import Measurer
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores
from tpcli.stats import Each, images_for, narrowest
from tpcli.surgery import PoolingSpec, insert, unpool
from tpcli.system.devices import free_memory
from tpcli.system.resume import Progress, key

from .options import Targets
from .plans import Candidate
from .race import LOOKS

LEAST = 16
"""Fewest images in a half."""

OnPass = Callable[[str, int | None], Callable[[int], None]]
"""Called with what begins and its number of images; returns what is called with those done."""


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
        self._decoded: tuple[int, list[tuple[Tensor, Tensor]] | None] = (-1, None)
        count = count_of(task.data, "optimize")
        order = np.random.default_rng(seed).permutation(count)
        chosen, held_out = subset(task.data, order[: count // 2].tolist()), order[count // 2 :]
        if not _enough(task, count // 2, targets):
            other = training()
            if (
                other is None
                or not _enough(other, count_of(other.data, "optimize"), targets)
                or overlap(other.data, task.data)
            ):
                raise _too_few(task, count, targets)
            shuffled = np.random.default_rng(seed).permutation(count_of(other.data, "optimize"))
            chosen, held_out = subset(other.data, shuffled.tolist()), np.arange(count)
        self.choice = chosen
        self.images = (count_of(chosen, "optimize"), len(held_out))
        self.is_halved = chosen.split == task.data.split
        # a bank is searched again for each part, so there is one part alone
        looks = LOOKS if task.bank is None else LOOKS[-1:]
        ends = [0, *(max(1, round(look * self.images[0])) for look in looks)]
        parts = [subset(chosen, range(a, b)) for a, b in itertools.pairwise(ends)]
        parts.append(subset(task.data, sorted(held_out.tolist())))
        self._measurers = [
            Measurer(model, replace(task, data=part), run, decode=self._decoder(part, i))
            for i, part in enumerate(parts)
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

    def _decoder(
        self, data: ImageData, part: int
    ) -> Callable[[ImageData], list[tuple[Tensor, Tensor]] | None]:
        def decode(wanted: ImageData) -> list[tuple[Tensor, Tensor]] | None:
            """A part's images where they fit in a quarter of the free memory, one part a time."""
            if wanted is not data:
                return None
            if self._decoded[0] != part:
                self._decoded = (part, None)
                size = (data.count or 0) * int(np.prod(data.config["input_size"]))
                if size < free_memory() / 4:
                    images = list(batches(data, self._run.batch_size, self._run.workers))
                    self._decoded = (part, images)
            return self._decoded[1]

        return decode


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


class Scoring:
    """Measures a model pooled by one candidate after another, each once.

    so_far: appended to labels of progress bars.
    """

    def __init__(
        self,
        model: nn.Module,
        halves: Halves,
        progress: Progress,
        identity: Mapping[str, Any],
        patch_tokens: int,
        on_pass: OnPass | None,
    ) -> None:
        self._model = model
        self._halves = halves
        self._progress = progress
        self._identity = identity
        self._patch_tokens = patch_tokens
        self._on_pass = on_pass
        self.so_far = ""

    def base(self, part: int) -> Scores:
        """Of the unpooled model on a part."""
        return self._halves.measure(self._model, part, self._pass("unpooled model"))

    def each(self, candidate: Candidate, part: int) -> Each:
        """The score of each image of a part."""
        label = f"{candidate.plan.label}, {candidate.speedup:.2f}x{self.so_far}"
        name = key(
            "scores", schedule=candidate.key, images=self._halves.identity(part), **self._identity
        )
        return unpacked(
            self._progress(name, lambda: packed(self.scores(candidate, part, label).each))
        )

    def scores(self, candidate: Candidate, part: int, label: str) -> Scores:
        """Measured, whatever is remembered; `label` names it in progress bars."""
        schedule = Schedule(candidate.tokens, self._patch_tokens)
        insert(self._model, PoolingSpec(schedule, candidate.plan.options))
        try:
            return self._halves.measure(self._model, part, self._pass(label))
        finally:
            unpool(self._model)

    def _pass(self, label: str) -> OnPass | None:
        on_pass = self._on_pass
        if on_pass is None:
            return None
        return lambda more, total: on_pass(f"{label} {more}".strip(), total)


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
