"""The training loop, on Hugging Face accelerate, and how it is told to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tpcli.config.recipe import Recipe
from tpcli.errors import TpcliError
from tpcli.evaluation.measurer import Measurer
from tpcli.surgery import unpooled
from tpcli.system.devices import explain_out_of_memory, is_out_of_memory

from .checkpoint import Checkpoints, Progress
from .data import Batches
from .folder import RunFolder
from .objective import Objective
from .setup import HeadMeasurer, Watcher


class Interrupted(TpcliError):
    """The run was told to stop and did, with a checkpoint. Exit code 130."""

    exit_code = 130


class StopRequest:
    """While active, remembers the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@dataclass
class Trainer:
    """Trains `model` from wherever `progress` is to the last epoch.

    model: unwrapped; prepared: what answers to a batch, as accelerate returned it. average: moving
    average of the weights, or None. copy: a spare of the model, for measuring in float32 what is
    trained in less.
    """

    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module
    prepared: nn.Module
    copy: nn.Module
    average: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    objective: Objective
    batches: Batches
    measurer: Measurer | HeadMeasurer
    folder: RunFolder
    checkpoints: Checkpoints
    progress: Progress
    watcher: Watcher
    stop: StopRequest = field(default_factory=StopRequest)
    saved_at: float = field(default_factory=time.monotonic)

    def train(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: told to stop; a checkpoint is written.
            TpcliError: the loss is not finite, or a checkpoint can't be written.
        """
        steps = self.batches.steps
        with self.stop, explain_out_of_memory(self.recipe.batch_size):
            while len(self.progress.rows) <= self.recipe.epochs:  # row 0 is before training
                epoch = len(self.progress.rows) - 1
                first = self.progress.step - epoch * steps
                if first < steps:
                    self.train_epoch(epoch, first)
                self.finish_epoch(epoch)

    def train_epoch(self, epoch: int, first_step: int) -> None:
        """Train from a step of an epoch to its end."""
        progress = self.progress
        self.prepared.train()
        batches = self.batches.epoch(epoch, first_step)
        began = time.perf_counter()
        for _ in range(first_step, self.batches.steps):
            loss = self.step(batches)
            progress.step += 1
            progress.loss_sum += loss
            progress.images += self.recipe.batch_size
            progress.seconds += time.perf_counter() - began
            lr = self.current_lr()
            self.watcher.step(
                step=progress.step, epoch=epoch, loss=loss, lr=lr, images=self.recipe.batch_size
            )
            self.accelerator.log({"train_loss": loss, "lr": lr}, step=progress.step)
            self.save_if_due()
            began = time.perf_counter()

    def step(self, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
        """One optimizer step; the mean loss over all processes."""
        accelerator, recipe = self.accelerator, self.recipe
        self.scheduler.step_update(self.progress.step)
        total = torch.zeros((), device=accelerator.device)
        for _ in range(recipe.grad_accumulation):
            images, targets = (t.to(accelerator.device, non_blocking=True) for t in next(batches))
            images, targets = self.objective.mix(images, targets, self.progress.step)
            with accelerator.accumulate(self.prepared):
                loss = self.objective(self.forward(images), targets, images)
                accelerator.backward(loss)
                total += loss.detach() / recipe.grad_accumulation
                if accelerator.sync_gradients:
                    loss_value = float(accelerator.reduce(total, "mean"))
                    norm = accelerator.clip_grad_norm_(
                        self.prepared.parameters(), recipe.clip_grad or math.inf
                    )
                    self.check_finite(loss_value, norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, self.progress.step + 1)
        return loss_value

    def forward(self, images: Tensor) -> Any:
        """Logits or features; says so where tokens are not finite and so can't be clustered."""
        try:
            return self.prepared(images)
        except (RuntimeError, IndexError) as error:
            if is_out_of_memory(error):  # the look at it below takes more
                raise
            with torch.no_grad(), unpooled(self.model):
                if not self.model(images).isfinite().all():
                    self.check_finite(math.nan, None)
            raise

    def check_finite(self, loss: float, norm: Tensor | None) -> None:
        """Raise before a step that would spoil the weights (fp16's scaler skips such steps)."""
        bad_norm = norm is not None and self.accelerator.scaler is None and not norm.isfinite()
        if math.isfinite(loss) and not bad_norm:
            return
        what = f"loss is {loss}" if not math.isfinite(loss) else "gradient is not finite"
        kept = self.checkpoints.latest()
        raise TpcliError(
            f"the {what} at step {self.progress.step + 1}, learning rate {self.current_lr():.3g}; "
            f"{f'the last good checkpoint is {kept}' if kept else 'there is no checkpoint yet'}; "
            "start over with a smaller `lr`, a smaller `clip_grad` or `precision=fp32`."
        )

    def current_lr(self) -> float:
        """The largest learning rate of any parameter group."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def save_if_due(self) -> None:
        """A checkpoint where time is up or someone asked to stop; all processes agree on it."""
        minutes = (time.monotonic() - self.saved_at) / 60
        is_main = self.accelerator.is_main_process
        stop, due = self.agreed(
            self.stop.signal is not None, is_main and minutes >= self.recipe.save_minutes
        )
        if stop or due:
            self.save()
        if stop:
            self.interrupt(f"step {self.progress.step}")

    def agreed(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process; every process calls this at the same place."""
        wanted = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
        return [bool(flag) for flag in self.accelerator.reduce(wanted, "sum").tolist()]

    def interrupt(self, place: str) -> None:
        """End the run as it was told to."""
        name = self.stop.signal.name if self.stop.signal else "a signal to another process"
        raise Interrupted(
            f"stopped by {name} after {place}, with a checkpoint; "
            "run the same command again to go on."
        )

    def note_unreadable(self) -> None:
        """Remember which images could not be read, and say so where they are new."""
        known = set(self.progress.unreadable)
        self.progress.unreadable = sorted(known.union(gather_object(self.batches.unreadable)))
        count = len(self.progress.unreadable)
        if count > len(known):
            names = ", ".join(self.progress.unreadable[:3]) + (", ..." if count > 3 else "")
            self.watcher.note(
                f"training images that can't be read, replaced by others: {count} ({names})"
            )

    def save(self) -> None:
        """Write a checkpoint now."""
        self.checkpoints.save(self.progress)
        self.saved_at = time.monotonic()

    def finish_epoch(self, epoch: int) -> None:
        """Measure, remember the best, write metrics and a checkpoint."""
        progress = self.progress
        row: dict[str, float] = {
            "epoch": epoch + 1,
            "step": progress.step,
            "lr": self.current_lr(),
            "train_loss": progress.loss_sum / self.batches.steps,
            "images_per_second": progress.images / progress.seconds,
            "seconds": progress.seconds,
        }
        self.copy.load_state_dict(self.model.state_dict())
        measure = self.measurer.task.measure
        candidates = {measure: ("model", self.copy)}
        if self.average is not None:
            candidates[f"average_{measure}"] = ("average", self.average.module)
        for column, (weights, model) in candidates.items():
            score = self.measurer.measure(model)
            row[column] = score.score
            best, before_training = progress.best[measure], progress.best["epoch"] == 0
            if score.score > best or (before_training and score.score == best):
                progress.best = {
                    "epoch": epoch + 1,
                    "weights": weights,
                    measure: score.score,
                    f"{measure}_ci95": list(score.ci95),
                }
                if self.accelerator.is_main_process:
                    progress.best["file"] = self.checkpoints.save_best(model.state_dict())
        progress.rows.append(row)
        progress.loss_sum, progress.images, progress.seconds = 0.0, 0, 0.0
        self.note_unreadable()
        self.save()
        if self.accelerator.is_main_process:
            self.folder.write_metrics(progress.rows, measure)
        self.watcher.epoch(row)
        self.accelerator.log({key: row[key] for key in candidates}, step=progress.step)
        (stop,) = self.agreed(self.stop.signal is not None)
        if stop and epoch + 1 < self.recipe.epochs:
            self.interrupt(f"epoch {epoch + 1}")
