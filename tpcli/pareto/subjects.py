"""What is swept: models with what their points share, and the points that are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpcli.budget import BudgetSolver
from tpcli.data import ImageData, batches
from tpcli.devices import device_name, free_memory
from tpcli.errors import UserError
from tpcli.files import read_json
from tpcli.flops import count_flops
from tpcli.measures.choice import Task, choose
from tpcli.measures.measurer import Measurer
from tpcli.models import weights_hash
from tpcli.options import PoolingOptions
from tpcli.planning import resolve
from tpcli.recipe import Recipe
from tpcli.schedule import Budget, Schedule
from tpcli.surgery import unpool
from tpcli.surgery.geometry import patch_tokens

from .asked import ModelSource, SweepOptions
from .cache import point_key
from .points import BASE, CONSTANT, DEFAULT, FINETUNED, SEARCHED
from .searches import searched


@dataclass(frozen=True)
class Job:
    """A point to be measured: which model, how pooled, under which schedule spec, how trained."""

    subject: Subject
    options: PoolingOptions | None
    schedule: str
    budget: float | None
    recipe: Recipe | None = None
    family: str = ""

    @property
    def method(self) -> str:
        """The name of the curve that the point is on."""
        method = self.options.method if self.options else BASE
        return method + FINETUNED if self.recipe else method

    @property
    def label(self) -> str:
        """Model, method and schedule, for people."""
        return f"{self.subject.name} {self.method} {self.schedule}"

    @cached_property
    def key(self) -> str:
        """A hash of everything that determines the point."""
        import timm

        subject, training = self.subject, self.subject.given.training
        is_file = self.schedule.endswith(".json")
        bank = subject.task.bank
        determinants: dict[str, Any] = {
            "weights": subject.weights,
            "architecture": repr(subject.model),
            "options": self.options.to_dict() if self.options else None,
            "schedule": [self.schedule, read_json(Path(self.schedule)) if is_file else None],
            "data": subject.task.data.fingerprint,
            "measure": [subject.task.measure, bank and bank.fingerprint, subject.task.bank_of],
            "amp": subject.options.amp,
            "strict": subject.options.strict,
            "speed": [device_name(subject.options.device), subject.options.batch_size],
            "versions": [torch.__version__, timm.__version__],
        }
        if self.searched:
            assert subject.given.calibration is not None
            determinants["calibration"] = subject.given.calibration.fingerprint
        if self.recipe is not None:
            assert training is not None
            determinants |= {"recipe": self.recipe.fixed(), "train": training.train.fingerprint}
        return point_key(**determinants)

    @property
    def is_risky(self) -> bool:
        """Whether resolving its schedule can fail. Where the smallest budget can be reached, all
        can, so only that one is."""
        if self.options is None or self.recipe is not None or self.searched:
            return False
        return self.budget is None or self.budget == min(self.subject.options.budgets)

    @property
    def is_spare(self) -> bool:
        """Whether another family's point stands in where this one's budget can't be reached."""
        return self.family not in ("", self.subject.options.families[0])

    @property
    def searched(self) -> bool:
        """Whether its schedule has to be searched."""
        return self.family == SEARCHED


class Subject:
    """A model of the sweep with what its points share: hashes, images, FLOPs counts, searches."""

    def __init__(self, source: ModelSource, task: Task, options: SweepOptions, cache: Path) -> None:
        self.given = source
        self.task = task
        self.model = unpool(source.loaded.model)
        self.name = source.loaded.name
        self.options = options
        self.cache = cache
        self._solvers: dict[PoolingOptions, BudgetSolver] = {}
        self._decoded: dict[str, list[tuple[Tensor, Tensor]] | None] = {}

    @cached_property
    def weights(self) -> str:
        """Hash of the weights."""
        return weights_hash(self.model)

    @property
    def learns_from_itself(self) -> bool:
        """Whether fine-tuning learns from the unpooled model alone, having no head or no labels."""
        training = self.given.training
        headless = not self.model.num_classes
        return headless or (training is not None and bool(training.train.unlabelled))

    @cached_property
    def base_flops(self) -> int:
        """FLOPs of the unpooled model."""
        return count_flops(self.model).total

    @cached_property
    def measurer(self) -> Measurer:
        """Measures the model and its pooled and trained versions."""
        folder = self.cache / "points"
        return Measurer(self.model, self.task, self.options.run, folder, self.decoded)

    def decoded(self, data: ImageData) -> list[tuple[Tensor, Tensor]] | None:
        """All batches, decoded once, where they fit in a quarter of the free memory."""
        if data.split not in self._decoded:
            self._decoded[data.split] = self._decode(data)
        return self._decoded[data.split]

    def _decode(self, data: ImageData) -> list[tuple[Tensor, Tensor]] | None:
        count = data.count
        channels, height, width = data.config["input_size"]
        if count is None or count * channels * height * width > free_memory() / 4:
            return None
        return list(batches(data, self.options.batch_size, self.options.workers))

    def check(self, job: Job) -> None:
        """Raise unless the model can have the job's schedule.

        Raises:
            UserError: it can't; says why.
        """
        resolve(self.model, self.schedule(job, None), job.options)

    def reaches(self, job: Job) -> bool:
        """Whether the job's budget can be reached in its family."""
        try:
            self.check(job)
        except UserError:
            return False
        return True

    def schedule(self, job: Job, on_trial: Callable[[int, int], None] | None) -> Schedule | str:
        """The job's schedule; budgets of one method share their FLOPs counts, or their search."""
        if job.budget is None or job.options is None:
            return job.schedule
        if job.searched:
            tokens = self._searched(job, on_trial)[f"{job.budget:g}"]
        else:
            if job.options not in self._solvers:
                self._solvers[job.options] = BudgetSolver(self.model, job.options)
            budget = Budget(job.budget, is_constant=job.family == CONSTANT)
            tokens = self._solvers[job.options].solve(budget)
        return Schedule(tokens, patch_tokens(self.model))

    def _searched(
        self, job: Job, on_trial: Callable[[int, int], None] | None
    ) -> dict[str, tuple[int, ...]]:
        """Tokens per block for every budget of the sweep, from one search that is remembered."""
        assert job.options is not None
        assert self.given.calibration is not None
        everything = replace(job, schedule=f"{SEARCHED} {self.options.budgets}", recipe=None)
        return searched(
            self.given.loaded,
            self.given.calibration,
            job.options,
            self.options.budgets,
            self.cache / "searches" / f"{everything.key}.json",
            device=self.options.device,
            on_trial=on_trial,
        )


def jobs(sources: Sequence[ModelSource], options: SweepOptions, cache: Path) -> list[Job]:
    """All points: each model, then its curves; those that need training last."""
    wanted: list[Job] = []
    specs = {DEFAULT: "flops:{:g}", CONSTANT: "flops:{:g}/constant", SEARCHED: "search:{:g}"}
    tasks = choose(options.measure, [source.candidate for source in sources], options.bank)
    for source, task in zip(sources, tasks, strict=True):
        subject = Subject(source, task, options, cache)
        wanted.append(Job(subject, None, "none", None))
        for method in options.poolings:
            wanted += [
                Job(
                    subject,
                    method,
                    specs[family].format(b),
                    b,
                    family=family,
                )
                for b in options.budgets
                for family in options.families
            ]
            wanted += [Job(subject, method, schedule, None) for schedule in options.schedules]
    if options.recipe is not None:
        wanted += [replace(job, recipe=options.recipe) for job in wanted if not job.is_spare]
    return wanted
