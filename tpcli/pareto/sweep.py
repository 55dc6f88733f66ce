"""Run a sweep: every point measured once, by whichever process gets to it first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tpcli.budget import BudgetSolver
from tpcli.data import ImageData, batches
from tpcli.evaluation import evaluate
from tpcli.flops import count_flops
from tpcli.models import LoadedModel, weights_hash
from tpcli.options import PoolingOptions
from tpcli.schedule import Schedule
from tpcli.surgery import pool, pooling_spec, unpool
from tpcli.surgery.insert import patch_tokens

from .cache import PointCache, point_key
from .compare import Comparison, compare
from .headline import Headline, headline
from .points import BASE, Point, frontier


@dataclass(frozen=True)
class ModelSource:
    """A model of the sweep and the images it is measured on."""

    loaded: LoadedModel
    data: ImageData


@dataclass(frozen=True)
class SweepOptions:
    """What to measure besides the models.

    methods: pooling options, one curve each. budgets: shares of the base FLOPs, one point each.
    schedules: further schedule specs, one point each.
    """

    methods: Sequence[PoolingOptions]
    budgets: Sequence[float] = ()
    schedules: Sequence[str] = ()
    batch_size: int = 128
    device: str = "auto"
    amp: bool = False
    workers: int = 0
    strict: bool = False


@dataclass(frozen=True)
class SweepResult:
    """All points in the order they were asked for, the frontier, and a headline per method."""

    points: tuple[Point, ...]
    frontier: tuple[Point, ...]
    headlines: tuple[Headline, ...]
    comparisons: tuple[Comparison, ...]
    """Each other method against the first, at the same budget and on the same images."""
    measured: int
    """How many points this process measured itself; the others were in the cache."""


@dataclass(frozen=True)
class Job:
    """A point to be measured: which model, how pooled, under which schedule spec."""

    subject: Subject
    options: PoolingOptions | None
    schedule: str
    budget: float | None
    key: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """Model, method and schedule, for people."""
        method = self.options.method if self.options else BASE
        return f"{self.subject.name} {method} {self.schedule}"


class Subject:
    """A model of the sweep with what its points share: hashes, decoded images, FLOPs counts."""

    def __init__(self, source: ModelSource, options: SweepOptions) -> None:
        self.model = unpool(source.loaded.model)
        self.name = source.loaded.name
        self.data = source.data
        self.options = options
        self._solvers: dict[PoolingOptions, BudgetSolver] = {}

    @cached_property
    def weights(self) -> str:
        """Hash of the weights."""
        return weights_hash(self.model)

    @cached_property
    def base_flops(self) -> int:
        """FLOPs of the unpooled model."""
        return count_flops(self.model).total

    @cached_property
    def decoded(self) -> list[tuple[Tensor, Tensor]] | None:
        """All batches, decoded once, where they fit in a quarter of the free memory."""
        count = self.data.count
        channels, height, width = self.data.config["input_size"]
        if count is None or count * channels * height * width > free_memory() / 4:
            return None
        return list(batches(self.data, self.options.batch_size, self.options.workers))

    def schedule(self, job: Job) -> Schedule | str:
        """The job's schedule; budgets of one method share their FLOPs counts."""
        if job.budget is None or job.options is None:
            return job.schedule
        if job.options not in self._solvers:
            self._solvers[job.options] = BudgetSolver(self.model, job.options)
        tokens = self._solvers[job.options].solve(job.budget)
        return Schedule(tokens, patch_tokens(self.model))


def sweep(
    sources: Sequence[ModelSource],
    options: SweepOptions,
    cache_folder: Path,
    on_job: Callable[[str, int | None], Callable[[int], None]] | None = None,
    on_point: Callable[[Point], None] | None = None,
) -> SweepResult:
    """Measure every model under every method and schedule.

    Points that are in the cache are not measured again; points that another process is measuring
    are waited for.

    Args:
        on_job: called with a label and the number of images when a measurement starts; returns what
            is called with the images of each batch done.
        on_point: called with each point as it becomes known.
    """
    cache = PointCache(cache_folder)
    jobs = list(_jobs(sources, options))
    points: dict[str, Point] = {}
    measured = 0
    pending = jobs
    while pending:
        waiting = []
        for job in pending:
            point = cache.get(job.key)
            if point is None:
                with cache.claim(job.key) as mine:
                    point = cache.get(job.key)  # it may have come in before the lock
                    if mine and point is None:
                        advance = on_job(job.label, job.subject.data.count) if on_job else None
                        point = measure(job, advance)
                        cache.put(job.key, point)
                        measured += 1
            if point is None:
                waiting.append(job)
                continue
            points[job.key] = point = replace(point, model=job.subject.name)
            if on_point is not None:
                on_point(point)
        if waiting:
            time.sleep(0.5)
        pending = waiting
    best = {id(p) for p in frontier(points.values())}
    ordered = tuple(
        replace(points[job.key], on_frontier=id(points[job.key]) in best) for job in jobs
    )
    names = dict.fromkeys(o.method for o in options.methods)
    return SweepResult(
        points=ordered,
        frontier=tuple(p for p in ordered if p.on_frontier),
        headlines=tuple(headline(ordered, name) for name in names),
        comparisons=tuple(compare(ordered, next(iter(names)))) if names else (),
        measured=measured,
    )


def measure(job: Job, on_batch: Callable[[int], None] | None = None) -> Point:
    """Pool, count FLOPs, measure accuracy, unpool."""
    subject, run = job.subject, job.subject.options
    model = subject.model
    try:
        tokens: tuple[int, ...] = ()
        if job.options is not None:
            pool(model, subject.schedule(job), job.options)
            spec = pooling_spec(model)
            assert spec is not None
            tokens = spec.schedule.tokens
        count = count_flops(model)
        result = evaluate(
            model,
            subject.data,
            batch_size=run.batch_size,
            device=run.device,
            amp=run.amp,
            workers=run.workers,
            strict=run.strict,
            source=subject.decoded,
            on_batch=on_batch,
        )
    finally:
        unpool(model)
    return Point(
        model=subject.name,
        method=job.options.method if job.options else BASE,
        schedule="tokens:" + ",".join(map(str, tokens)) if tokens else "none",
        budget=job.budget,
        tokens=tokens,
        options=job.options.to_dict() if job.options else {},
        gflops=count.total / 1e9,
        gflops_ratio=count.total / subject.base_flops,
        pooling_gflops=count.pooling / 1e9,
        top1=result.top1,
        top1_lo=result.top1_ci95[0],
        top1_hi=result.top1_ci95[1],
        top5=result.top5,
        loss=result.loss,
        images_per_second=result.images_per_second,
        params=count.params,
        count=result.count,
        unreadable=result.unreadable,
        correct=result.correct,
    )


def _jobs(sources: Sequence[ModelSource], options: SweepOptions) -> Iterator[Job]:
    for source in sources:
        subject = Subject(source, options)
        plans: list[tuple[PoolingOptions | None, str, float | None]] = [(None, "none", None)]
        for method in options.methods:
            plans += [(method, f"flops:{budget:g}", budget) for budget in options.budgets]
            plans += [(method, schedule, None) for schedule in options.schedules]
        for method_options, schedule, budget in plans:
            yield Job(
                subject,
                method_options,
                schedule,
                budget,
                _key(subject, method_options, schedule),
            )


def _key(subject: Subject, options: PoolingOptions | None, schedule: str) -> str:
    import timm
    import torch

    contents = Path(schedule).read_text() if schedule.endswith(".json") else ""
    determinants: dict[str, Any] = {
        "weights": subject.weights,
        "architecture": repr(subject.model),
        "options": options.to_dict() if options else None,
        "schedule": schedule + contents,
        "data": subject.data.fingerprint,
        "amp": subject.options.amp,
        "versions": [torch.__version__, timm.__version__],
    }
    return point_key(**determinants)


def free_memory() -> int:
    """Bytes of memory that are free, or 4 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
