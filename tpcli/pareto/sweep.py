"""Run a sweep: every point measured once, by whichever process gets to it first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tpcli.evaluation.choose import Task
from tpcli.surgery import unpooled
from tpcli.system.devices import borrowed, pick_device

from .cache import PointCache
from .compare import Comparison, compare
from .headline import Headline, answered_alike, headline
from .jobs import Job, OnJob, jobs, measure
from .options import ModelSource, SweepOptions
from .points import FINETUNED, Point, entries, frontier


@dataclass(frozen=True)
class SweepResult:
    """All entries in the order they were asked for, the frontier, and the headlines."""

    points: tuple[Point, ...]
    others: tuple[Point, ...]
    """What was measured in families of schedules that another was better than."""
    frontier: tuple[Point, ...]
    headlines: tuple[Headline, ...]
    """One per method."""
    comparisons: tuple[Comparison, ...]
    """Each other method against the first, at the same budget and on the same images."""
    measured: int
    """How many points this process measured itself; the others were in the cache."""
    tasks: tuple[Task, ...] = ()
    """What each model was measured by."""
    by_model: tuple[Headline, ...] = ()
    """One per method and model, where there are several models."""


def sweep(
    sources: Sequence[ModelSource],
    options: SweepOptions,
    cache_folder: Path,
    on_job: OnJob | None = None,
    on_point: Callable[[Point], None] | None = None,
    on_tasks: Callable[[Sequence[Task]], None] | None = None,
) -> SweepResult:
    """Measure every model under every method and schedule.

    Points that are in the cache are not measured again; points that another process is measuring
    are waited for. The models are left as they were.

    Args:
        on_job: called with a label and the number of images when a measurement starts; returns what
            is called with the images of each batch done.
        on_point: called with each point as it becomes known.
        on_tasks: called, before anything is measured, with what each model is measured by.

    Raises:
        UserError: a model or its data does not allow the measure, or a schedule can't be had.
    """
    device = pick_device(options.run.device)
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(borrowed(source.loaded.model, device))
            stack.enter_context(unpooled(source.loaded.model))
        wanted = jobs(sources, options, cache_folder)
        tasks = tuple(subject.task for subject in dict.fromkeys(job.subject for job in wanted))
        if on_tasks is not None:
            on_tasks(tasks)
        return _sweep(wanted, tasks, options, PointCache(cache_folder), on_job, on_point)


def _sweep(
    wanted: list[Job],
    tasks: tuple[Task, ...],
    options: SweepOptions,
    cache: PointCache,
    on_job: OnJob | None,
    on_point: Callable[[Point], None] | None,
) -> SweepResult:
    for job in wanted:
        if job.is_risky and not job.is_spare and cache.get(job.key) is None:
            job.subject.check(job)
    points: dict[Job, Point] = {}
    measured = 0
    pending = wanted
    while pending:
        waiting = []
        for job in pending:
            point = cache.get(job.key)
            if point is None and job.is_spare and not job.subject.reaches(job):
                continue
            if point is None:
                with cache.claim(job.key) as mine:
                    point = cache.get(job.key)  # it may have come in before the lock
                    if mine and point is None:
                        point = measure(job, on_job)
                        cache.put(job.key, point)
                        measured += 1
            if point is None:
                waiting.append(job)
                continue
            points[job] = point = replace(point, model=job.subject.name)
            if on_point is not None:
                on_point(point)
        if waiting:
            time.sleep(0.5)
        pending = waiting
    everything = [points[job] for job in wanted if job in points]
    entered = entries(everything)
    best = {id(p) for p in frontier(entered)}
    ordered = tuple(replace(p, on_frontier=id(p) in best) for p in entered)
    kept = {id(p) for p in entered}
    names = list(dict.fromkeys(o.method for o in options.poolings))
    curves = names + [name + FINETUNED for name in names if options.recipe is not None]
    models = list(dict.fromkeys(p.model for p in ordered))
    return SweepResult(
        points=ordered,
        others=tuple(p for p in everything if id(p) not in kept),
        frontier=tuple(p for p in ordered if p.on_frontier),
        headlines=answered_alike([headline(ordered, name) for name in curves]),
        comparisons=tuple(compare(ordered, names[0])) if names else (),
        tasks=tasks,
        measured=measured,
        by_model=answered_alike(
            [headline(ordered, name, model) for name in curves for model in models if models[1:]]
        ),
    )
