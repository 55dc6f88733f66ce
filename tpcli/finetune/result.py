"""What identifies a run, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from tpcli.config.measures import MEASURES
from tpcli.config.recipe import Recipe
from tpcli.flops import count_flops
from tpcli.models.load import LoadedModel, architecture, weights_hash
from tpcli.surgery import pooling_spec, unpooled
from tpcli.system.files import replacing

from .checkpoint import Progress
from .data import TrainingData


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a run. Scores in percent, by `measure`; FLOPs per image.

    base_score: the unpooled model before training. start_score: right after pooling. best_score: of
    the weights that were saved, after `best_epoch` (0: as they were before training), "model" or
    "average". final_score: after the last epoch. count: images measured on. ratio: FLOPs over base
    FLOPs. images_per_second: of training, over all processes, loading included, measuring not.
    seconds: of training. held_out: whether no image that was measured on was trained on too.
    unreadable: names of images that could not be read, by split.
    """

    out: str
    model: str
    epochs: int
    schedule: str
    tokens: list[int]
    method: dict[str, Any]
    measure: str
    base_score: float
    start_score: float
    best_score: float
    best_score_ci95: list[float]
    best_epoch: int
    best_weights: str
    final_score: float
    count: int
    flops: int
    base_flops: int
    ratio: float
    distilled: bool
    images_per_second: float
    seconds: float
    processes: int
    held_out: bool = True
    unreadable: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; scores under the name of their measure as well."""
        values = asdict(self)
        own = {name.replace("score", self.measure): v for name, v in values.items()}
        return {**own, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuneResult:
        """What `to_dict` wrote, also before there were other measures than top-1."""
        known = {"measure": "top1", "held_out": True, **values}
        own: dict[str, Any] = {
            f.name: known[f.name if f.name in known else f.name.replace("score", "top1")]
            for f in fields(cls)
        }
        return cls(**own)


def identity(loaded: LoadedModel, data: TrainingData, recipe: Recipe) -> dict[str, Any]:
    """What a run is: a folder of another one is not gone on with."""
    model, spec = loaded.model, pooling_spec(loaded.model)
    with unpooled(model):
        modules = architecture(model)
    return {
        "architecture": model.pretrained_cfg.get("architecture") or type(model).__name__,  # type: ignore[operator, union-attr]
        "modules": modules,
        "weights": weights_hash(model),
        "tokens": list(spec.schedule.tokens) if spec else [],
        "pooling": spec.options.to_dict() if spec else {},
        "train_images": data.train.count,
        "validation_images": data.validation.count,
        "classes": list(data.train.classes),
        "preprocessing": {key: data.train.config[key] for key in sorted(data.train.config)},
        "train_content": data.train.content,
        "validation_content": data.validation.content,
        **recipe.fixed(),
    }


def summarise(
    loaded: LoadedModel,
    best: nn.Module,
    recipe: Recipe,
    measure: str,
    scores: Mapping[str, Any],
    progress: Progress,
    *,
    distilled: bool,
    processes: int,
    out: Path,
    held_out: bool,
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
        measure=measure,
        base_score=scores[f"base_{measure}"],
        start_score=scores[f"start_{measure}"],
        best_score=progress.best[measure],
        best_score_ci95=progress.best[f"{measure}_ci95"],
        best_epoch=progress.best["epoch"],
        best_weights=progress.best["weights"],
        final_score=last[measure],
        count=scores["count"],
        flops=flops,
        base_flops=base_flops,
        ratio=flops / base_flops,
        distilled=distilled,
        images_per_second=images / seconds,
        seconds=seconds,
        processes=processes,
        held_out=held_out,
        unreadable={"train": progress.unreadable, "validation": scores.get("unreadable", [])},
    )


def draw_curve(
    rows: Sequence[Mapping[str, float]], base_score: float, path: Path, measure: str
) -> None:
    """Draw metrics rows (the first is the model before training) as a PNG, atomically."""
    table = pd.DataFrame(rows).set_index("epoch")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    accuracy = figure.subplots()
    accuracy.axhline(base_score, color="black", linestyle="--", linewidth=1, label="unpooled model")
    for column, label, color in (
        (measure, "weights", "tab:blue"),
        (f"average_{measure}", "averaged weights", "tab:orange"),
    ):
        if column in table:
            accuracy.plot(table[column], color=color, marker="o", ms=3, label=label)
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set_xlabel("epoch (0: before training)")
    accuracy.set_ylabel(MEASURES[measure].axis)
    accuracy.grid(alpha=0.3)
    loss = accuracy.twinx()
    loss.plot(
        table["train_loss"], color="tab:gray", linewidth=1, alpha=0.7, label="training loss (right)"
    )
    loss.set_ylabel("training loss")
    lines = accuracy.get_lines() + loss.get_lines()
    labels = [str(line.get_label()) for line in lines]
    figure.legend(lines, labels, loc="outside upper center", ncols=4, fontsize=8)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=150)
