"""The points of a sweep: which there are, and how one is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpcli.config.choices import CONSTANT_FAMILY, DEFAULT_FAMILY, SEARCH_BUDGETS, SEARCHED
from tpcli.config.options import PoolingOptions
from tpcli.config.recipe import Recipe
from tpcli.config.schedule import Budget, Schedule
from tpcli.data import ImageData, batches
from tpcli.errors import UserError
from tpcli.evaluation.choose import Task, choose
from tpcli.evaluation.measurer import Measurer
from tpcli.flops import count_flops
from tpcli.models.load import LoadedModel, architecture, load, weights_hash
from tpcli.schedules.budget import BudgetSolver
from tpcli.schedules.resolve import pool, resolve
from tpcli.surgery import pooling_spec, unpool
from tpcli.surgery.geometry import patch_tokens
from tpcli.system.devices import device_name, free_memory
from tpcli.system.files import read_json
from tpcli.system.resume import Progress

from .cache import claimed, point_key, remember
from .options import ModelSource, SweepOptions
from .points import BASE, FINETUNED, Point

Found = dict[str, tuple[int, ...]]
"""Tokens per block for each budget, written as in the file."""


def searched(
    loaded: LoadedModel,
    calibration: ImageData,
    method: PoolingOptions,
    budgets: Sequence[float],
    path: Path,
    *,
    device: str = "auto",
    on_trial: Callable[[int, int], None] | None = None,
) -> Found:
    """Tokens per block for every budget: what `path` holds, or what a search finds, written to it.

    Raises:
        UserError: as `search`.
    """
    from tpcli.search import SearchOptions, budgets_with, search

    depth = len(loaded.model.blocks)  # type: ignore[arg-type]
    found = stored(path, budgets, depth)
    if found is not None:
        return found
    with claimed(path, timeout=-1):  # processes that share the cache wait for one
        found = stored(path, budgets, depth)
        if found is not None:
            return found
        least = min(budgets)
        options = SearchOptions(
            budgets=budgets_with(least) if least < min(SEARCH_BUDGETS) else SEARCH_BUDGETS,
            device=device,
        )
        if calibration.count is not None:
            options = replace(options, images=min(options.images, calibration.count))
        progress = Progress(path.with_suffix(".part"), path)
        result = search(
            loaded.model,
            calibration,
            method,
            options,
            name=loaded.name,
            progress=progress,
            on_trial=on_trial,
        )
        tokens = {f"{b:g}": tuple(result.schedule(b).tokens) for b in budgets}
        with progress.finishing():
            remember(path, {"made_by": result.made_by, "tokens": tokens})
        return tokens


def stored(path: Path, budgets: Sequence[float], depth: int) -> Found | None:
    """Tokens of a search that was made before, where they are whole."""
    try:
        tokens = read_json(path)["tokens"]
        found = {f"{b:g}": tuple(index(t) for t in tokens[f"{b:g}"]) for b in budgets}
    except (UserError, KeyError, TypeError):
        return None
    return found if all(len(each) == depth for each in found.values()) else None


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
        """The method, and whether it is fine-tuned."""
        method = self.options.method if self.options else BASE
        return method + FINETUNED if self.recipe else method

    @property
    def curve(self) -> str:
        """The name of the curve that the point is on: of a further family, with its name."""
        return self.method + (f"/{self.family}" if self.is_further else "")

    @property
    def label(self) -> str:
        """Model, method and schedule, for people."""
        return f"{self.subject.name} {self.method} {self.schedule}"

    @property
    def work(self) -> float:
        """Images to run through the unpooled model that take about as long."""
        data, training = self.subject.task.data, self.subject.given.training
        images = data.count or 0
        if self.recipe is not None and training is not None:
            images += 3 * self.recipe.epochs * (training.train.count or 0)
        return images * (self.budget or 1.0)

    @cached_property
    def key(self) -> str:
        """A hash of everything that determines the point."""
        import timm

        subject, training = self.subject, self.subject.given.training
        is_file = self.schedule.endswith(".json")
        bank = subject.task.bank
        determinants: dict[str, Any] = {
            "weights": subject.weights,
            "architecture": architecture(subject.model),
            "options": self.options.to_dict() if self.options else None,
            "schedule": [self.schedule, read_json(Path(self.schedule)) if is_file else None],
            "data": subject.task.data.fingerprint,
            "measure": [subject.task.measure, bank and bank.fingerprint, subject.task.bank_of],
            "amp": subject.options.run.amp,
            "strict": subject.options.run.strict,
            "speed": [device_name(subject.options.run.device), subject.options.run.batch_size],
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
    def is_further(self) -> bool:
        """Whether it is of a further family, which may not reach every budget."""
        return self.family not in ("", self.subject.options.families[0])

    @property
    def searched(self) -> bool:
        """Whether its schedule has to be searched."""
        return self.family == SEARCHED


class Subject:
    """A model of the sweep with everything that its points share: hashes, images, counts."""

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
        return list(batches(data, self.options.run.batch_size, self.options.run.workers))

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
            budget = Budget(job.budget, is_constant=job.family == CONSTANT_FAMILY)
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
            device=str(self.options.run.device),
            on_trial=on_trial,
        )


def jobs(sources: Sequence[ModelSource], options: SweepOptions, cache: Path) -> list[Job]:
    """All points: each model, then its curves; those that need training last."""
    wanted: list[Job] = []
    specs = {
        DEFAULT_FAMILY: "flops:{:g}",
        CONSTANT_FAMILY: "flops:{:g}/constant",
        SEARCHED: "search:{:g}",
    }
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
        wanted += [replace(job, recipe=options.recipe) for job in wanted if not job.is_further]
    return wanted


Begin = Callable[[str, int | None], Callable[[int], None]]
"""Called with what begins and its number of steps, where known; returns what is called with the
steps done."""


def measure(job: Job, begin: Begin) -> Point:
    """One point; the subject's model is left unpooled and as it was trained before."""
    subject = job.subject

    def begin_pass(what: str, images: int | None) -> Callable[[int], None]:
        return begin(f"{job.label}: evaluating {what}".strip(), images)

    try:
        model = _pooled(job, begin)
        spec = pooling_spec(model)
        tokens = spec.schedule.tokens if spec else ()
        if job.recipe is not None:
            model = _trained(job, model, begin)
        begin(f"{job.label}: counting FLOPs", None)
        count = count_flops(model)
        begin_pass("", subject.task.data.count)
        found = subject.measurer.measure(model, begin_pass)
    finally:
        unpool(subject.model)
    return Point(
        model=subject.name,
        method=job.method,
        schedule="tokens:" + ",".join(map(str, tokens)) if tokens else "none",
        budget=job.budget,
        tokens=tokens,
        options=job.options.to_dict() if job.options else {},
        gflops=count.total / 1e9,
        gflops_ratio=count.total / subject.base_flops,
        pooling_gflops=count.pooling / 1e9,
        measure=found.measure,
        score=found.score,
        score_lo=found.ci95[0],
        score_hi=found.ci95[1],
        images_per_second=found.images_per_second,
        params=count.params,
        count=found.count,
        unreadable=found.unreadable,
        epochs=job.recipe.epochs if job.recipe else 0,
        family=job.family,
        more=found.more,
        each=found.each,
        curve=job.curve,
    )


def _pooled(job: Job, begin: Begin) -> nn.Module:
    """The subject's own model, pooled as the job says."""
    model = job.subject.model
    if job.options is None:
        return model
    advance: Callable[[int], None] | None = None

    def on_trial(done: int, total: int) -> None:
        nonlocal advance
        if advance is None:
            advance = begin(f"{job.subject.name} {job.method}: searching schedules", total)
        advance(1)

    begin(f"{job.label}: solving the budget" if job.budget else f"{job.label}: pooling", None)
    return pool(model, job.subject.schedule(job, on_trial), job.options)


def _trained(job: Job, model: nn.Module, begin: Begin) -> nn.Module:
    """A copy of `model` after fine-tuning; a run that was stopped resumes."""
    from tpcli.finetune import Watcher, finetune

    subject, recipe = job.subject, job.recipe
    assert recipe is not None
    if job.options is None and subject.learns_from_itself:
        return model  # it would learn from itself
    assert subject.given.training is not None

    class Images(Watcher):
        """Passes on how many images were trained on."""

        def __init__(self, advance: Callable[[int], None], batch_size: int) -> None:
            self.advance = advance
            self.batch_size = batch_size

        def begin(
            self, *, steps: int, done: int, base_score: float, start_score: float, measure: str
        ) -> None:
            self.advance(done * self.batch_size)

        def step(self, *, step: int, epoch: int, loss: float, lr: float, images: int) -> None:
            self.advance(images)

    folder = subject.cache / "finetuned" / job.key
    images = subject.given.training.train.count
    total = None if images is None else recipe.epochs * images
    watcher = Images(begin(f"{job.label}: training", total), recipe.batch_size)
    finetune(
        replace(subject.given.loaded, model=copy.deepcopy(model)),
        subject.given.training,
        recipe,
        out=folder,
        device=str(subject.options.run.device),
        watcher=watcher,
    )
    return load(str(folder)).model
