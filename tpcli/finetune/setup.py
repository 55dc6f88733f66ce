"""What a run takes from accelerate and timm, built to a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from timm.layers import DropPath, calculate_drop_path_rates
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.utils.data import Dataset

from tpcli.config.recipe import Recipe
from tpcli.data import UNREADABLE, ImageData
from tpcli.errors import UserError
from tpcli.evaluation.answers import Answers, chunks, collect, features_of
from tpcli.evaluation.choose import Task
from tpcli.evaluation.run import RunOptions
from tpcli.evaluation.scores import Scores, scores
from tpcli.models.load import LoadedModel
from tpcli.system.devices import pick_device, sixteen_bit_type

from .data import TrainingData, seeded


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Stochastic depth that grows over the blocks from 0 to `rate`, as timm builds it."""
    blocks = list(model.blocks)  # type: ignore[arg-type]
    rates: Any = calculate_drop_path_rates(rate, len(blocks))
    for block, own in zip(blocks, rates, strict=True):
        for module in list(block.modules()):
            for name in [n for n, _ in module.named_children() if n.startswith("drop_path")]:
                setattr(module, name, DropPath(own) if own else nn.Identity())


def settle_precision(recipe: Recipe, device: str) -> Recipe:
    """The recipe with a precision: bf16; where it is only imitated, fp16, and fp32 on CPUs."""
    if recipe.precision is not None:
        return recipe
    chosen = pick_device(device)
    if sixteen_bit_type(chosen) is torch.float16:
        return replace(recipe, precision="fp16")
    # units for it: AVX-512 alone takes longer than in float32
    has_amx: bool = torch.cpu._is_amx_tile_supported()
    is_fast = has_amx or torch.backends.cpu.get_cpu_capability().startswith("SVE")
    return replace(recipe, precision="bf16" if chosen.type != "cpu" or is_fast else "fp32")


def make_accelerator(recipe: Recipe, device: str, out: Path) -> Accelerator:
    chosen = pick_device(device)
    if recipe.precision == "fp16" and chosen.type == "cpu":
        raise UserError("`precision=fp16` is not there on a CPU; use bf16 or fp32.")
    if recipe.tracker is not None and recipe.tracker not in map(str, get_available_trackers()):
        raise UserError(
            f"tracker {recipe.tracker} is not installed; pip install it, or leave it out."
        )
    AcceleratorState._reset_state()  # each run in a process may have a precision of its own
    accelerator = Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
        gradient_accumulation_steps=recipe.grad_accumulation,
        log_with=recipe.tracker,
        project_dir=str(out),
    )
    if accelerator.device.type != chosen.type:
        raise UserError(f"device {device} is not where this process was started; use auto.")
    return accelerator


def make_optimizer(loaded: LoadedModel, recipe: Recipe) -> torch.optim.Optimizer:
    model = loaded.model
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"no weight of {loaded.name} is trained: all have requires_grad False; set it for some."
        )
    try:
        return create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.peak_lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
        )
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"optimizer {recipe.opt!r} is not known to timm; use one such as adamw."
        ) from error


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs,
            min_lr=recipe.min_lr,
            warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]
            warmup_lr=recipe.peak_lr / max(recipe.warmup_epochs * steps, 1),
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except ValueError as error:
        raise UserError(
            f"sched {recipe.sched!r} is not known to timm; use one such as cosine."
        ) from error
    return scheduler


class Watcher:
    """Told of what happens; does nothing itself. Commands draw from it."""

    def begin(
        self, *, steps: int, done: int, base_score: float, start_score: float, measure: str
    ) -> None:
        """Training begins: optimizer steps in all, and how many a former run has done."""

    def step(self, *, step: int, epoch: int, loss: float, lr: float, images: int) -> None:
        """An optimizer step was made, on so many images."""

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch was measured; `row` is its line of metrics.csv."""

    def note(self, text: str) -> None:
        """Something worth a line, such as where the run goes on from."""


def give_head(loaded: LoadedModel, data: TrainingData, seed: int) -> None:
    """Give a model without a head a linear one for the classes of the data, in place.

    The start weights follow from `seed` alone, so they are the same in every process and run.
    """
    model: Any = loaded.model
    if model.num_classes == 0 and data.train.classes:
        with seeded(seed):
            model.reset_classifier(len(data.train.classes))


def linear_head(loaded: LoadedModel) -> nn.Linear:
    """The head of a model.

    Raises:
        UserError: there is none, or not a single linear one.
    """
    model: Any = loaded.model
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"{loaded.name} has no single linear head, which `freeze=backbone` trains; give "
            "`num_classes`, or leave `freeze` out."
        )
    return head


def freeze_backbone(loaded: LoadedModel) -> None:
    """Let only the head be trained.

    Raises:
        UserError: as `linear_head`.
    """
    head = linear_head(loaded)
    loaded.model.requires_grad_(False)
    head.requires_grad_()


class FeatureRows(Dataset[tuple[Tensor, int]]):
    """Features of images, (D,) each, with their targets; UNREADABLE where there are none."""

    def __init__(self, answers: Answers, data: ImageData) -> None:
        bad = set(answers.unreadable)
        names = data.names or [f"image {i}" for i in range(data.count or 0)]
        self.answers = answers
        self.count = len(names)
        readable = [i for i, name in enumerate(names) if name not in bad]
        self.index = {image: row for row, image in enumerate(readable)}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, image: int) -> tuple[Tensor, int]:
        row = self.index.get(image)
        if row is None:
            return torch.empty(0), UNREADABLE
        return torch.from_numpy(self.answers.rows[row]), int(self.answers.targets[row])


class HeadMeasurer:
    """Measures top-1 of a model from the features that go into its head."""

    def __init__(self, model: nn.Module, task: Task, run: RunOptions) -> None:
        self.task = task
        self.answers = collect(model, task.data, features_of, run)

    def measure(self, model: Any) -> Scores:
        """The scores of `model`, whose backbone is that of all others."""
        head, found = model.get_classifier(), self.answers
        device = head.weight.device
        with torch.inference_mode():
            logits = torch.cat([head(rows.to(device)).cpu() for (rows,) in chunks(found.rows)])
        each = logits.argmax(1).numpy() == found.targets
        return scores("top1", each, found.images_per_second, found.unreadable)
