"""Checkpoints: whole or not there, the previous one kept until the new one is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpcli.errors import TpcliError
from tpcli.files import read_json, write_json

MODEL, AVERAGE, PROGRESS, BEST = (
    "model.safetensors",
    "average.safetensors",
    "progress.json",
    "best.safetensors",
)
PARTIAL = ".partial"


@dataclass
class Progress:
    """Where a run is.

    step: optimizer steps done. rows: the lines of metrics.csv. loss_sum, images, seconds: of the
    epoch that is under way. best: epoch, weights ("model" or "average"), top1 of the best so far.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The folder `checkpoints` of a run.

    accelerate writes the optimizer, the scaler and the random state of every process; model and
    average are written here, without DDP's prefix, so that a run can go on with another number
    of processes. Learning rates and sampler positions are functions of the step.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, model: nn.Module, average: nn.Module | None
    ) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.model = model
        self.average = average
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = sorted(self.folder.glob("step-*"))
        return complete[-1] if complete else None

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; every process calls this.

        Raises:
            TpcliError: it could not be written (disk full, ...); the previous one is intact.
        """
        target = self.folder / f"step-{progress.step:09d}"
        partial = self.folder / PARTIAL
        is_main = self.accelerator.is_main_process
        try:
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            if is_main:
                write_json(partial / PROGRESS, asdict(progress))
            self.accelerator.wait_for_everyone()
            if is_main:
                for file in partial.iterdir():
                    flush(file)
                if target.exists():
                    shutil.rmtree(target)
                partial.rename(target)
                for old in self.folder.glob("step-*"):
                    if old != target:
                        shutil.rmtree(old)
        except (OSError, RuntimeError, SafetensorError, TpcliError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TpcliError(self._why_not_saved(error)) from error
        self.accelerator.wait_for_everyone()

    def load(self) -> Progress:
        """Go back to the newest checkpoint; every process calls this."""
        source = self.latest()
        assert source is not None
        try:
            self.accelerator.load_state(str(source))
            return Progress(**read_json(source / PROGRESS))
        except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise TpcliError(
                f"checkpoint {source} can't be read ({error}); start over with --force."
            ) from error

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Keep the best weights so far, atomically; the main process calls this."""
        partial = self.folder / f"{PARTIAL}-{BEST}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_weights(weights, partial)
            flush(partial)
            partial.replace(self.folder / BEST)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise TpcliError(self._why_not_saved(error)) from error

    def load_best(self) -> dict[str, Tensor]:
        """What `save_best` wrote."""
        return load_file(self.folder / BEST)

    def _save_weights(
        self, models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str
    ) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            write_weights(self.model.state_dict(), Path(folder) / MODEL)
            if self.average is not None:
                write_weights(self.average.state_dict(), Path(folder) / AVERAGE)

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        self.model.load_state_dict(load_file(Path(folder) / MODEL))
        if self.average is not None:
            self.average.load_state_dict(load_file(Path(folder) / AVERAGE))

    def _why_not_saved(self, error: Exception) -> str:
        kept = self.latest()
        rest = f"the previous one, {kept.name}, is intact" if kept else "there is no previous one"
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        free = shutil.disk_usage(self.folder.parent).free / 1e9
        return (
            f"the checkpoint in {self.folder} could not be written ({reason}; {free:.1f} GB free); "
            f"{rest}; make room and run the same command again."
        )


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a state_dict as safetensors."""
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, path)


def flush(path: Path) -> None:
    """Have the file on the disk, not only in the system's memory, before it is relied on."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
