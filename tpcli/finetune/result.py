"""What a run is, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from tpcli.flops import count_flops
from tpcli.models import LoadedModel, weights_hash
from tpcli.recipe import Recipe
from tpcli.surgery import pooling_spec, unpooled

from .checkpoint import Progress
from .data import TrainingData


@dataclass(frozen=True)
class FinetuneResult:
    """What came of a run. Accuracies in percent, FLOPs per image.

    base_top1: the unpooled model before training. start_top1: right after pooling. best_top1: of
    the weights that were saved, after `best_epoch` (0: as they were before training), "model" or
    "average". final_top1: after the last epoch. count: images measured on. ratio: FLOPs over base
    FLOPs. images_per_second: of training, over all processes, loading included, measuring not.
    seconds: of training. unreadable: names of images that could not be read, by split.
    """

    out: str
    model: str
    epochs: int
    schedule: str
    tokens: list[int]
    method: dict[str, Any]
    base_top1: float
    start_top1: float
    best_top1: float
    best_top1_ci95: list[float]
    best_epoch: int
    best_weights: str
    final_top1: float
    count: int
    flops: int
    base_flops: int
    ratio: float
    distilled: bool
    images_per_second: float
    seconds: float
    processes: int
    unreadable: dict[str, list[str]] = field(default_factory=dict)


def identity(loaded: LoadedModel, data: TrainingData, recipe: Recipe) -> dict[str, Any]:
    """What a run is: a folder of another one is not gone on with."""
    model, spec = loaded.model, pooling_spec(loaded.model)
    return {
        "architecture": model.pretrained_cfg.get("architecture") or type(model).__name__,  # type: ignore[operator, union-attr]
        "weights": weights_hash(model),
        "tokens": list(spec.schedule.tokens) if spec else [],
        "pooling": spec.options.to_dict() if spec else {},
        "train_images": data.train.count,
        "validation_images": data.validation.count,
        "classes": list(data.train.classes),
        "preprocessing": {key: data.train.config[key] for key in sorted(data.train.config)},
        **recipe.fixed(),
    }


def summarise(
    loaded: LoadedModel,
    best: nn.Module,
    recipe: Recipe,
    scores: Mapping[str, Any],
    progress: Progress,
    distilled: bool,
    accelerator: Accelerator,
    out: Path,
) -> FinetuneResult:
    """The result of a run whose best weights are in `best`."""
    spec = pooling_spec(best)
    flops = count_flops(best).total
    with unpooled(best):
        base_flops = count_flops(best).total
    last, trained = progress.rows[-1], progress.rows[1:]
    seconds = sum(row["seconds"] for row in trained)
    images = sum(row["seconds"] * row["images_per_second"] for row in trained)
    return FinetuneResult(
        out=str(out),
        model=loaded.name,
        epochs=recipe.epochs,
        schedule=spec.schedule.name if spec else "none",
        tokens=list(spec.schedule.tokens) if spec else [],
        method=spec.options.to_dict() if spec else {},
        base_top1=scores["base_top1"],
        start_top1=scores["start_top1"],
        best_top1=progress.best["top1"],
        best_top1_ci95=progress.best["top1_ci95"],
        best_epoch=progress.best["epoch"],
        best_weights=progress.best["weights"],
        final_top1=last["top1"],
        count=scores["count"],
        flops=flops,
        base_flops=base_flops,
        ratio=flops / base_flops,
        distilled=distilled,
        images_per_second=images / seconds,
        seconds=seconds,
        processes=accelerator.num_processes,
        unreadable={
            "train": list(progress.unreadable),
            "validation": list(scores.get("unreadable", ())),
        },
    )
