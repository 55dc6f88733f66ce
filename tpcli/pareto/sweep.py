"""Run a sweep: every point measured once, by whichever process gets to it first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from tpcli.bench.clock import BenchOptions, interleaved, random_images, timing_setup
from tpcli.config.measures import MEASURES
from tpcli.config.options import options_from_dict
from tpcli.errors import TpcliError
from tpcli.evaluation.choose import Task
from tpcli.schedules.flops_cost import sharing_weights
from tpcli.schedules.resolve import pool
from tpcli.stats import wilson_interval
from tpcli.surgery import unpooled
from tpcli.system.devices import borrowed, pick_device
from tpcli.system.ranks import team

from .cache import PointCache
from .compare import Comparison, Recommendation, compare, recommend
from .headline import Headline, answered_alike, headline
from .jobs import Job, jobs, measure
from .options import ModelSource, SweepOptions
from .points import Point, PointTime, frontier


@dataclass(frozen=True)
class SweepResult:
    """The points of a sweep, in the order of its options, and what follows from them.

    measured: how many of them this process measured; the others were in the cache. tasks: what each
    model was measured by. left: points not measured yet, where a sweep is unfinished.
    """

    points: tuple[Point, ...]
    measured: int = 0
    tasks: tuple[Task, ...] = ()
    left: int = 0

    def __post_init__(self) -> None:
        best = {id(p) for p in frontier(self.points)}
        marked = tuple(replace(p, on_frontier=id(p) in best) for p in self.points)
        object.__setattr__(self, "points", marked)

    @property
    def frontier(self) -> tuple[Point, ...]:
        """The points that no other beats, in the order of the points."""
        return tuple(p for p in self.points if p.on_frontier)

    @property
    def curves(self) -> list[str]:
        """The names of curves, in the order of the points."""
        return list(dict.fromkeys(p.curve for p in self.points if not p.is_base))

    @cached_property
    def headlines(self) -> tuple[Headline, ...]:
        """One for each curve."""
        return answered_alike([headline(self.points, curve) for curve in self.curves])

    @cached_property
    def by_model(self) -> tuple[Headline, ...]:
        """One for each curve and model, where there are several models."""
        pairs = dict.fromkeys((p.curve, p.model) for p in self.points if not p.is_base)
        models = list(dict.fromkeys(p.model for p in self.points))
        found = [(curve, model) for curve in self.curves for model in models if models[1:]]
        return answered_alike([headline(self.points, *pair) for pair in found if pair in pairs])

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Each other curve against the first, at the same budget and on the same images."""
        return tuple(compare(self.points, self.curves[0])) if self.curves else ()

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The point to take; None where nothing was pooled."""
        return recommend(self.points)


@dataclass(frozen=True)
class Plan:
    """What a sweep is about to do.

    points: how many there are. known: those in the cache. images: of each point, None where their
    number is unknown. is_share: whether scores are shares, with Wilson's intervals.
    unreachable: labels of points of a further family that can't meet their budget.
    """

    points: int
    known: int
    images: int | None
    is_share: bool
    unreachable: tuple[str, ...] = ()


def widest(images: int) -> float:
    """Half of the widest Wilson interval that a share of so many images can have, in points."""
    low, high = wilson_interval(images // 2, images)
    return 50 * (high - low)


def limit_for(seconds: float, images: int, target: float) -> int | None:
    """A round number of images that takes at most about `target` seconds; None where all do.

    seconds: the estimate for all `images`.
    """
    if seconds <= target:
        return None
    steps = [base * 10**power for power in range(2, 9) for base in (1, 2, 5)]
    fewer = [step for step in steps if step < images]
    fitting = [step for step in fewer if seconds * step / images <= target]
    return max(fitting, default=min(fewer, default=None))


class SweepProgress:
    """Is told how a sweep goes; shows nothing."""

    def choose(self, tasks: Sequence[Task]) -> None:
        """What each model is measured by is known."""

    def plan(self, plan: Plan) -> None:
        """The sweep begins."""

    def estimate(self, seconds: float) -> None:
        """The first batches say how long the points that are left take."""

    def begin(self, what: str, steps: int | None) -> Callable[[int], None]:
        """Something begins, of so many steps; returns what is called with the steps done."""
        return _ignore

    def point(self, point: Point) -> None:
        """A point is known."""

    def unfinished(self, result: SweepResult) -> None:
        """A curve is complete, or the sweep is stopped: a result to show for it."""


def _ignore(steps: int) -> None:
    """Nobody wants to know."""


LONG = 60.0
"""Seconds after which an unfinished result is passed on though no curve is complete."""


def sweep(
    sources: Sequence[ModelSource],
    options: SweepOptions,
    cache_folder: Path,
    progress: SweepProgress | None = None,
) -> SweepResult:
    """Measure every model under every method and schedule.

    Points in the cache are not measured again; points that another process is measuring are waited
    for. The models are left as they were.

    Raises:
        UserError: a model or its data does not allow the measure, or a schedule can't be had.
    """
    device = pick_device(options.run.device)
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(borrowed(source.loaded.model, device))
            stack.enter_context(unpooled(source.loaded.model))
        return _Sweep(sources, options, cache_folder, progress or SweepProgress()).run()


class _Sweep:
    """The state of a sweep while it runs."""

    def __init__(
        self,
        sources: Sequence[ModelSource],
        options: SweepOptions,
        cache_folder: Path,
        progress: SweepProgress,
    ) -> None:
        self.sources = sources
        self.options = options
        self.progress = progress
        self.cache = PointCache(cache_folder)
        self.jobs = jobs(sources, options, cache_folder)
        self.points: dict[Job, Point] = {}
        self.measured = 0
        self.is_estimated = False
        self.passed_on, self.passed_at = 0, time.monotonic()
        subjects = dict.fromkeys(job.subject for job in self.jobs)
        self.tasks = tuple(subject.task for subject in subjects)

    def run(self) -> SweepResult:
        """Measure all points."""
        self.progress.choose(self.tasks)
        self._plan()
        try:
            pending = self.jobs
            while pending:
                waiting = [job for job in pending if not self._settle(job)]
                if waiting:
                    time.sleep(0.5)
                pending = waiting
            points = [self.points[job] for job in self.jobs]
            if self.options.timing is not None and team().is_first:
                self.progress.begin("timing all points in turn", None)
                points = timed(points, self.sources, self.options.timing)
        except (KeyboardInterrupt, TpcliError):
            with suppress(TpcliError):
                self._pass_on()
            raise
        return SweepResult(tuple(points), self.measured, self.tasks)

    def _plan(self) -> None:
        """Say what there is to do; leave out what further families can't reach.

        Raises:
            UserError: a schedule can't be had.
        """
        self.progress.begin("looking for points that are measured already", None)
        known = {job for job in self.jobs if self.cache.get(job.key) is not None}
        unreachable = []
        for job in self.jobs:
            if job not in known and (job.is_further or job.is_risky):
                self.progress.begin(f"{job.label}: counting FLOPs", None)
                if not job.is_further:
                    job.subject.check(job)
                elif not job.subject.reaches(job):
                    unreachable.append(job)
        self.jobs = [job for job in self.jobs if job not in unreachable]
        self.work = sum(job.work for job in self.jobs if job not in known)
        task = self.tasks[0]
        self.progress.plan(
            Plan(
                len(self.jobs),
                len(known),
                task.data.count,
                MEASURES[task.measure].is_share,
                tuple(job.label for job in unreachable),
            )
        )

    def _settle(self, job: Job) -> bool:
        """Whether the point is known, after measuring it unless another process does."""
        point = self.cache.get(job.key)
        if point is None:
            with self.cache.claim(job.key) as mine:
                point = self.cache.get(job.key)  # it may have come in before the lock
                if mine and point is None:
                    point = measure(job, self._beginner(job))
                    self.cache.put(job.key, point)
                    self.measured += 1
        if point is None:
            return False
        self.points[job] = point = replace(point, model=job.subject.name, curve=job.curve)
        self.progress.point(point)
        own = [j for j in self.jobs if (j.subject, j.curve) == (job.subject, job.curve)]
        is_complete = not point.is_base and all(j in self.points for j in own)
        if is_complete or time.monotonic() - self.passed_at > LONG:
            self._pass_on()
        return True

    def _pass_on(self) -> None:
        """Show an unfinished result, where there is a pooled point and news."""
        known = [self.points[job] for job in self.jobs if job in self.points]
        bases = [p for p in known if p.is_base]  # another process may be measuring one
        shown = [p for p in known if p.is_base or any(b.is_base_of(p) for b in bases)]
        left = len(self.jobs) - len(shown)
        if not left or len(shown) == self.passed_on or all(p.is_base for p in shown):
            return
        self.progress.begin("writing the report", None)
        self.progress.unfinished(SweepResult(tuple(shown), self.measured, self.tasks, left))
        self.passed_on, self.passed_at = len(shown), time.monotonic()

    def _beginner(self, job: Job) -> Callable[[str, int | None], Callable[[int], None]]:
        """`progress.begin`, with an estimate of the whole from the first batches measured."""

        def begin(what: str, steps: int | None) -> Callable[[int], None]:
            advance = self.progress.begin(what, steps)
            if self.is_estimated or job.recipe is not None or not steps:
                return advance
            began, done = math.nan, 0

            def counted(images: int) -> None:
                nonlocal began, done
                advance(images)
                if math.isnan(began):  # the first batch warms up
                    began = time.monotonic()
                elif not self.is_estimated:
                    done += images
                    took = time.monotonic() - began
                    if took >= SAMPLE or done >= steps / 2:
                        self.is_estimated = True
                        self.progress.estimate(took / done * self.work / (job.budget or 1.0))

            return counted

        return begin


SAMPLE = 1.0
"""Seconds of a measurement from which the time of the sweep is estimated, at least."""


def timed(
    points: Sequence[Point], sources: Sequence[ModelSource], options: BenchOptions
) -> list[Point]:
    """The same points with their time.

    Each model without pooling and all its points take turns, so that they share the machine's
    state. A fine-tuned point takes as long as the same point before. The models are left as they
    were.

    Args:
        options: `seconds` for each point; `dtype` and `threads` as in `bench`.

    Raises:
        UserError: memory runs out; names the batch size to try.
    """
    times: dict[tuple[object, ...], PointTime] = {}
    for source in sources:
        own = {_key(p): p for p in points if p.model == source.loaded.name}
        found = _times(source.loaded.model, own.values(), options)
        times |= dict(zip(own, found, strict=True))
    return [replace(p, time=times[_key(p)]) for p in points]


def _key(p: Point) -> tuple[object, ...]:
    """What the time of a point depends on."""
    return (p.model, p.tokens, tuple(sorted(p.options.items())))


def _times(model: nn.Module, points: Collection[Point], options: BenchOptions) -> list[PointTime]:
    device = pick_device(options.device)
    with borrowed(model, device), unpooled(model), timing_setup(options):
        versions = [model]
        for p in points:
            if p.tokens:
                spec = options_from_dict(p.options)
                versions.append(pool(sharing_weights(model), p.tokens, spec))
        whole = replace(options, seconds=options.seconds * len(versions))
        images = random_images(model, options, device)
        seconds = interleaved(versions, images, whole)  # (rounds, versions)
    ratios = np.median(seconds[:, :1] / seconds, axis=0)
    latencies = 1000 * np.median(seconds, axis=0)
    pooled = iter(range(1, len(versions)))
    columns = [next(pooled) if p.tokens else 0 for p in points]
    return [PointTime(float(latencies[i]), float(ratios[i]), options.batch_size) for i in columns]
