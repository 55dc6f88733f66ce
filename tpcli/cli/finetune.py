"""`tpcli finetune`: train a pooled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tpcli.config.choices import DEFAULT_SCHEDULE, DEVICES
from tpcli.config.measures import MEASURES
from tpcli.config.specs import base_name
from tpcli.system.files import check_output
from tpcli.system.ranks import team

from . import render
from .field_options import PoolingGroup, RecipeGroup, open_training
from .groups import DATA_PANEL, DataGroup, ForceOption, JsonOption, ModelArgument, ModelGroup
from .settings import take_config
from .values import FILE, FOLDER, SPLIT, choice, flag, option

DEMO_SCHEDULE = "keep:0.12@0"
"""A harsher schedule, so that the small demo has accuracy to recover."""


def finetune(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    source: DataGroup,
    train_split: Annotated[str, option(SPLIT, "Split to train on.", panel=DATA_PANEL)] = "train",
    training: RecipeGroup,
    out: Annotated[
        Path | None,
        option(FOLDER, "Folder to write; a run in it is resumed.", shown="MODEL-finetuned"),
    ] = None,
    config: Annotated[
        Path | None,
        option(
            FILE,
            "TOML file with options; the command line takes precedence.",
            callback=take_config,
            is_eager=True,
        ),
    ] = None,
    device: Annotated[str, choice(DEVICES, "Device")] = "auto",
    resume: Annotated[bool, flag("Fail unless there is a run to resume.", "--resume")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a pooled model, to recover accuracy.

    Without labels or without a head, the pooled model is distilled from the unpooled one. With
    --freeze backbone, only a linear head is trained, on features that are computed once. The same
    command resumes an interrupted run. On 8 GPUs: torchrun --nproc-per-node 8 -m tpcli finetune ...

    Examples:
        tpcli finetune deit_small_patch16_224 --data imagenet/ --schedule flops:0.58
        tpcli finetune pooled/ --data imagenet/ --epochs 30 --lr 1e-4 --out tuned/
        tpcli finetune vit_small_patch14_dinov2 --num-classes 0 --data flowers/ --freeze backbone
        tpcli finetune --config recipe.toml
    """
    recipe = training.recipe
    out = out or Path(f"{base_name(model)}-finetuned")
    check_output(out, is_folder=True)
    source.require_for(model, train_split, source.split)
    pooling.check(model)

    import torch

    from tpcli import finetune as library
    from tpcli.surgery import pooling_spec

    from .progress import TrainingProgress

    is_first = team().is_first
    library.join(device)
    torch.manual_seed(recipe.seed)  # a new head has the same start weights in every process and run
    loaded = loading.load(model)
    default = DEMO_SCHEDULE if model == "demo" else DEFAULT_SCHEDULE
    pooling.apply_to(loaded, default_schedule=default)
    data = open_training(source, loaded, recipe, train_split)
    if is_first:
        render.say_left_out(data.train, data.validation)
    spec = pooling_spec(loaded.model)
    origin = {
        "model": model,
        **_plain(loading),
        **(spec.options.to_dict() if spec else {}),
        "schedule": spec.schedule.tokens_spec if spec else "none",
        **_plain(source),
        "train_split": train_split,
    }
    with TrainingProgress(f"finetune {loaded.name}", recipe.epochs, not is_first) as watcher:
        result = library.finetune(
            loaded,
            data,
            recipe,
            out=out,
            device=device,
            resume=resume,
            force=force,
            origin=origin,
            watcher=watcher,
        )
    library.leave()
    if not is_first:
        return
    if as_json:
        render.print_json(result.to_dict())
        return
    low, high = result.best_score_ci95
    label = MEASURES[result.measure].label
    weights = "averaged weights, " if result.best_weights == "average" else ""
    when = f"{weights}epoch {result.best_epoch}, chosen on these images"
    if result.best_epoch == 0:
        when = "before training, which did harm: try a smaller --lr or more --epochs"
    unreadable = [name for names in result.unreadable.values() for name in names]
    command = render.eval_command(out, data.validation.spec)
    render.print_facts(
        [
            ("model", f"{result.model}, {recipe.epochs} epochs"),
            ("schedule", result.schedule),
            (f"base {label}", f"{result.base_score:.2f}%  (unpooled, before training)"),
            (f"start {label}", f"{result.start_score:.2f}%  (pooled, before training)"),
            (
                f"best {label}",
                f"{result.best_score:.2f}%  ({when}; 95% interval {low:.2f} to {high:.2f})",
            ),
            ("GFLOPs", render.gigas_of(result.flops, result.base_flops, f"; {render.CONVENTION}")),
            (
                "images/s",
                f"{result.images_per_second:.0f}  (training, {result.processes} processes)",
            ),
            *([] if result.held_out else [("not held out", "measured on training images")]),
            *([("unreadable", render.some(unreadable))] if unreadable else []),
            ("saved", f"{out}/  (curve.png, metrics.csv; try: {command})"),
        ]
    )


def _plain(group: Any) -> dict[str, object]:
    """The values of a group as a TOML file can hold them."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in vars(group).items()}
