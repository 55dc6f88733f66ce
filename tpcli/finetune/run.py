"""`finetune`: checks, setup, start and end of a run."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import nn

from tpcli.config.recipe import Recipe
from tpcli.data import Head, chosen_on, overlap
from tpcli.data.overlap import SELECTED, TRAINED
from tpcli.errors import UserError
from tpcli.evaluation.answers import collect, features_of
from tpcli.evaluation.choose import Task
from tpcli.evaluation.measurer import Measurer
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import LoadedModel
from tpcli.models.save import save
from tpcli.surgery import pooling_spec, unpool
from tpcli.system import ranks
from tpcli.system.devices import pick_device
from tpcli.system.files import write_json

from .checkpoint import Checkpoints, Progress
from .data import Batches, TrainingData, check_data, label_names, match_data, outlive_signals
from .folder import CHECKPOINTS, CURVE, RESULT, RunFolder
from .objective import (
    FEATURES,
    LABELS,
    DenseFeatures,
    Objective,
    check_distills,
    measure_of,
    source_of,
)
from .result import FinetuneResult, draw_curve, identity, summarise
from .setup import (
    FeatureRows,
    HeadMeasurer,
    Watcher,
    freeze_backbone,
    give_head,
    linear_head,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    set_drop_path,
    settle_precision,
)
from .trainer import Trainer

TEACHER_ABOVE_CHANCE = 20.0
"""Points of top-1 above guessing that the unpooled model needs to be worth learning from."""


def finetune(
    loaded: LoadedModel,
    data: TrainingData,
    recipe: Recipe | None = None,
    *,
    out: Path,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    origin: Mapping[str, Any] | None = None,
    watcher: Watcher | None = None,
) -> FinetuneResult:
    """Train a model, pooled or not, and write it to the folder `out`; go on where `out` left off.

    Every process of a distributed run calls this with the same arguments; the model must have the
    same weights in each.

    Args:
        loaded: the model with its start weights; trained in place.
        device: "auto" (what accelerate finds) or "cpu".
        resume: insist that there is a run to go on with. force: replace what `out` holds.
        origin: more keys for the written config.toml, such as the model's spec.

    Raises:
        UserError: data, recipe, model or `out` don't go together.
        Interrupted: stopped by a signal, with a checkpoint.
        TpcliError: the loss is not finite, or something can't be written.
    """
    recipe = settle_precision(recipe or Recipe(), device)
    loaded.model.float()  # of 16 bits too: what is trained in less is `precision`
    spec = pooling_spec(loaded.model)
    if recipe.freeze:
        give_head(loaded, data, recipe.seed)
        freeze_backbone(loaded)
    head = Head.of(loaded.model, loaded.name)
    data = match_data(data, head, recipe)
    source = source_of(data, head, recipe)
    if source != LABELS:
        check_distills(loaded, data, recipe, source)
    if recipe.distill and not (spec is not None and spec.schedule.pools):
        raise UserError(
            "`distill` learns from the model before pooling, and nothing is pooled here; leave it "
            "out, or give a `schedule`."
        )
    join(device)
    state = PartialState()
    folder = RunFolder(out, identity(loaded, data, recipe))
    with folder.held() if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        folder.check(resume=resume, force=force)
        settings = {**(origin or {}), **recipe.to_dict()}
        return _run(loaded, data, recipe, source, folder, device, settings, watcher or Watcher())


def _run(
    loaded: LoadedModel,
    data: TrainingData,
    recipe: Recipe,
    source: str,
    folder: RunFolder,
    device: str,
    settings: Mapping[str, Any],
    watcher: Watcher,
) -> FinetuneResult:
    """The run in a folder that has been looked at and is held."""
    out, model = folder.path, loaded.model
    spec = pooling_spec(model)
    pools = spec is not None and spec.schedule.pools
    accelerator = make_accelerator(recipe, device, out)
    is_main = accelerator.is_main_process
    head = Head.of(model, loaded.name)
    check_data(data, recipe, accelerator.num_processes)
    optimizer = make_optimizer(loaded, recipe)
    scheduler = make_scheduler(optimizer, recipe, (data.train.count or 0) // recipe.batch_size)
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    if is_main:
        folder.begin(settings)
    accelerator.wait_for_everyone()
    if recipe.tracker is not None:  # this may write into the folder
        config = {key: value for key, value in recipe.to_dict().items() if value is not None}
        accelerator.init_trackers("tpcli", config=config)
    finished = folder.result()
    if finished is not None:
        watcher.note(f"{out} is complete already")
        if is_main:
            folder.finish()
        return FinetuneResult.from_dict(finished)
    if out != folder.out:
        watcher.note(f"{folder.out} keeps its run until the new one, in {out}, is complete")

    set_seed(recipe.seed, device_specific=True)
    teacher = unpool(copy.deepcopy(model)).eval().requires_grad_(False).to(accelerator.device)
    task = Task(measure_of(data, head, recipe), data.validation)
    measure = task.measure
    run = RunOptions(
        recipe.eval_batch_size,
        accelerator.device,
        workers=recipe.workers,
        sharded=True,
        start_worker=outlive_signals,
    )
    base = Measurer(teacher, task, run)
    measurer: Measurer | HeadMeasurer = base
    answering = DenseFeatures(model) if source == FEATURES else model
    held_out = not overlap(data.train, data.validation)
    made_on = (
        {"how": TRAINED, **chosen_on(data.train)},
        {"how": SELECTED, **chosen_on(data.validation)},
    )
    model.to(accelerator.device)
    if recipe.caches_features and not data.is_stream:
        watcher.note("computing the features of all images, once")
        answering, measurer = linear_head(loaded), HeadMeasurer(model, task, run)
        rows = FeatureRows(collect(model, data.train, features_of, run), data.train)
        data = replace(data, train=replace(data.train, images=rows))
        recipe = replace(recipe, workers=0)
    scores = folder.stored("scores")
    if f"start_{measure}_ci95" not in scores:  # none, or of an older version
        scores = _scores_before(base, measurer, model, pools)
    if is_main:
        folder.write_scores(scores)
    distills = pools and not recipe.freeze if recipe.distill is None else recipe.distill
    if source == LABELS and recipe.distill is None and measure == "top1":
        distills = distills and scores["base_top1"] >= 100 / head.size + TEACHER_ABOVE_CHANCE

    set_drop_path(model, recipe.drop_path)
    spare = copy.deepcopy(model)
    average = (
        ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay else None
    )
    processes, is_cuda = accelerator.num_processes, accelerator.device.type == "cuda"
    batches = Batches(data, recipe, processes, accelerator.process_index, is_cuda)
    prepared, optimizer = accelerator.prepare(answering, optimizer)
    checkpoints = Checkpoints(
        out / CHECKPOINTS, accelerator, model, average.module if average else None
    )
    for path, wrong in checkpoints.passed_over():
        watcher.note(f"checkpoint {path} {wrong}; it is passed over")
    progress = checkpoints.load()
    if progress is None:  # training that only does harm leaves the model as it was
        start, interval = scores[f"start_{measure}"], scores[f"start_{measure}_ci95"]
        best = {"epoch": 0, "weights": "model", measure: start, f"{measure}_ci95": interval}
        if is_main:
            best["file"] = checkpoints.save_best(model.state_dict())
        progress = Progress(rows=[{"epoch": 0, "step": 0, measure: start}], best=best)
    else:
        watcher.note(f"going on with {out} after step {progress.step}")
    if is_main:
        folder.write_metrics(progress.rows, measure)
    watcher.begin(
        steps=recipe.epochs * batches.steps,
        done=progress.step,
        base_score=scores[f"base_{measure}"],
        start_score=scores[f"start_{measure}"],
        measure=measure,
    )
    teacher_or_none = teacher if distills else None
    objective = Objective(recipe, head.size, teacher_or_none, accelerator.autocast, source)
    Trainer(
        recipe=recipe,
        accelerator=accelerator,
        model=model,
        prepared=prepared,
        copy=spare,
        average=average,
        optimizer=optimizer,
        scheduler=scheduler,
        objective=objective,
        batches=batches,
        measurer=measurer,
        folder=folder,
        checkpoints=checkpoints,
        progress=progress,
        watcher=watcher,
    ).train()

    for tracker in accelerator.trackers:
        tracker.finish()
    spare.load_state_dict(checkpoints.load_best(progress))
    result = summarise(
        loaded,
        spare,
        recipe,
        measure,
        scores,
        progress,
        distilled=distills,
        processes=processes,
        out=folder.out,
        held_out=held_out,
    )
    if is_main:
        set_drop_path(spare, 0.0)
        classes = list(label_names(data.train, head)) or None
        _write_model(spare, out, label_names=classes, made_on=[*loaded.made_on, *made_on])
        draw_curve(progress.rows, scores[f"base_{measure}"], out / CURVE, measure)
        write_json(out / RESULT, result.to_dict())
        folder.finish()
    accelerator.wait_for_everyone()
    return result


def join(device: str = "auto") -> None:
    """Make this process one of its group, once, before data are opened.

    timm deals the shards of a stream out as they are opened, to the processes there are then.
    """
    kind = pick_device(device).type
    ranks.join(kind)
    PartialState(cpu=kind == "cpu")


def leave() -> None:
    """Take this process out of its group, once, after the last run."""
    PartialState().destroy_process_group()


def _scores_before(
    unpooled: Measurer, measurer: Measurer | HeadMeasurer, model: nn.Module, pools: bool
) -> dict[str, Any]:
    measure = measurer.task.measure
    start = measurer.measure(model)
    base = unpooled.measure(unpooled.model) if pools else start
    return {
        f"base_{measure}": base.score,
        f"start_{measure}": start.score,
        f"start_{measure}_ci95": list(start.ci95),
        "count": base.count,
        "unreadable": list(base.unreadable),
    }


def _write_model(model: nn.Module, out: Path, **extra: Any) -> None:
    """Add the model's files to `out`; config.json last, so that the folder is a model or is not."""
    fresh = out / ".model"
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed right here
    save(model.cpu().to(memory_format=torch.contiguous_format), fresh, **extra)
    for file in sorted(fresh.iterdir(), key=lambda f: f.name == "config.json"):
        file.replace(out / file.name)
    fresh.rmdir()
