"""The images of the choice, in parts, and those held back; what models score on each."""

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
from tpcli.data import ImageData, batches, count_of, subset
from tpcli.errors import UserError
from tpcli.evaluation.choose import Task
from tpcli.evaluation.measurer import Measurer
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores
from tpcli.stats import Each, images_for, narrowest
from tpcli.surgery import PoolingSpec, insert, unpool
from tpcli.system.devices import free_memory
from tpcli.system.resume import Progress, key

from .options import Aims
from .plans import Candidate
from .race import LOOKS

LEAST = 16
"""Images without which no half is worth comparing on."""

OnPass = Callable[[str, int | None], Callable[[int], None]]
"""Called with what begins and its number of images; returns what is called with those done."""


class Halves:
    """Images in parts to choose on, and others to check on, once.

    They are two random halves of the task's images; or, where a half is too small for the aims, the
    training split and all of the task's images.

    Args:
        training: the same task on the training split, None where there is none.

    Raises:
        UserError: there are too few images for the aims, or at all; says how many it takes.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        run: RunOptions,
        aims: Aims,
        seed: int,
        training: Callable[[], Task | None],
    ) -> None:
        self._run = run
        self._decoded: tuple[int, list[tuple[Tensor, Tensor]] | None] = (-1, None)
        count = count_of(task.data, "optimize")
        order = np.random.default_rng(seed).permutation(count)
        chosen, held_back = subset(task.data, order[: count // 2].tolist()), order[count // 2 :]
        if not _enough(task, count // 2, aims):
            other = training()
            if other is None or not _enough(other, count_of(other.data, "optimize"), aims):
                raise _too_few(task, count, aims)
            shuffled = np.random.default_rng(seed).permutation(count_of(other.data, "optimize"))
            chosen, held_back = subset(other.data, shuffled.tolist()), np.arange(count)
        self.choice = chosen
        self.images = (count_of(chosen, "optimize"), len(held_back))
        self.is_halved = chosen.split == task.data.split
        # a bank is looked through anew for each part, so there is one part alone
        looks = LOOKS if task.bank is None else LOOKS[-1:]
        ends = [0, *(max(1, round(look * self.images[0])) for look in looks)]
        parts = [subset(chosen, range(a, b)) for a, b in itertools.pairwise(ends)]
        parts.append(subset(task.data, sorted(held_back.tolist())))
        self._measurers = [
            Measurer(model, replace(task, data=part), run, decode=self._decoder(part, i))
            for i, part in enumerate(parts)
        ]

    @property
    def parts(self) -> int:
        """How many parts there are to choose on; the one after them is held back."""
        return len(self._measurers) - 1

    def measure(self, model: nn.Module, part: int, on_pass: OnPass | None) -> Scores:
        """What a model, pooled or not, scores on a part."""
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


def _enough(task: Task, count: int, aims: Aims) -> bool:
    if count < LEAST:
        return False
    if aims.max_drop is None or aims.risk != "upper" or not MEASURES[task.measure].is_share:
        return True
    return narrowest(count) <= aims.max_drop


def _too_few(task: Task, count: int, aims: Aims) -> UserError:
    what = f"the {task.data.split} split of {task.data.spec} has {count:,} images"
    if count // 2 < LEAST or aims.max_drop is None:
        return UserError(
            f"{what}, too few to choose on one half and check on the other; give at least "
            f"{2 * LEAST}."
        )
    wanted = aims.max_drop or 0.1
    zero = "" if aims.max_drop else "a drop of 0 can't be promised from any number of them, and "
    return UserError(
        f"{what}, half of which can promise no less than {narrowest(count // 2):.2f} points; "
        f"{zero}max_drop {wanted:g} takes at least {2 * images_for(wanted):,}, or `risk=mean`."
    )


class Scoring:
    """Pools a model by one candidate after another and measures it; each is measured once.

    so_far: words that stand behind the label of what is measured.
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
        """Measured anew, with a label for people."""
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
