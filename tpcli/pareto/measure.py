"""Measure one point: pool, train if asked, count FLOPs, evaluate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from tpcli.flops import count_flops
from tpcli.models import load
from tpcli.planning import pool
from tpcli.surgery import pooling_spec, unpool

from .points import Point
from .subjects import Job

OnJob = Callable[[str, int | None], Callable[[int], None]]
"""Called with a label and a number of steps where something begins; returns what is called with the
steps done."""


def measure(job: Job, on_job: OnJob | None = None) -> Point:
    """One point; the subject's model is left unpooled and as it was trained before."""
    subject = job.subject
    try:
        model = _pooled(job, on_job)
        spec = pooling_spec(model)
        tokens = spec.schedule.tokens if spec else ()
        if job.recipe is not None:
            model = _trained(job, model, on_job)
        count = count_flops(model)
        found = subject.measurer.measure(model, partial(_begin, job, on_job) if on_job else None)
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
    )


def _begin(job: Job, on_job: OnJob, label: str, images: int | None) -> Callable[[int], None]:
    """Say that a model begins to run over images."""
    return on_job(f"{job.label} {label}".strip(), images)


def _pooled(job: Job, on_job: OnJob | None) -> nn.Module:
    """The subject's own model, pooled as the job says."""
    model = job.subject.model
    if job.options is None:
        return model
    advance: Callable[[int], None] | None = None

    def on_trial(done: int, total: int) -> None:
        nonlocal advance
        if on_job is not None and advance is None:
            advance = on_job(f"{job.subject.name} {job.method} searching schedules", total)
        if advance is not None:
            advance(1)

    return pool(model, job.subject.schedule(job, on_trial), job.options)


def _trained(job: Job, model: nn.Module, on_job: OnJob | None) -> nn.Module:
    """A copy of `model` after fine-tuning; a run that was stopped goes on."""
    from tpcli.finetune import Watcher, finetune

    subject, recipe = job.subject, job.recipe
    assert recipe is not None
    if job.options is None and subject.learns_from_itself:
        return model  # it is what it would learn from
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
    watcher = None
    if on_job is not None:
        watcher = Images(on_job(f"{job.label} training", total), recipe.batch_size)
    finetune(
        replace(subject.given.loaded, model=copy.deepcopy(model)),
        subject.given.training,
        recipe,
        out=folder,
        device=subject.options.device,
        watcher=watcher,
    )
    return load(str(folder)).model
