"""Checkpoints: whole or not there, the previous one kept until the new one is complete."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpcli.errors import TpcliError, UserError
from tpcli.system.files import flush, read_json, settle, why_not_written, write_json

PROGRESS = "progress.json"
"""Where a run is, and size and checksum of every other file of the checkpoint."""


def what_is_wrong(checkpoint: Path, thoroughly: bool = False) -> str | None:
    """Why a checkpoint is not complete, or None; `thoroughly` reads all that is in it."""
    try:
        files = read_json(checkpoint / PROGRESS).get("files", {})  # older versions wrote none
        for name, (size, crc) in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"is incomplete: it has no {name}"
            if path.stat().st_size != size or (thoroughly and checksum(path) != [size, crc]):
                return f"is damaged: {name} is not what was written"
    except (UserError, OSError, AttributeError, TypeError, ValueError):
        return f"is incomplete: its {PROGRESS} can't be read"
    return None


def checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]


MODEL, AVERAGE, BEST = "model.safetensors", "average.safetensors", "best.safetensors"
PARTIAL, REPLACED = ".partial", ".replaced"


@dataclass
class Progress:
    """Where a run is.

    step: optimizer steps done. rows: the lines of metrics.csv. loss_sum, images, seconds: of the
    epoch that is under way. best: epoch, weights ("model" or "average"), top1 of the best so far,
    and checksum of its file. unreadable: names of training images that could not be read so far.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    best: dict[str, Any] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


class Checkpoints:
    """The folder `checkpoints` of a run.

    accelerate writes the optimizer, the scaler and the random state of every process; model and
    average are written here, without DDP's prefix, so that a run can go on with another number
    of processes. Learning rates and sampler positions are functions of the step. progress.json has
    the size and the checksum of every other file: that is what complete means.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, model: nn.Module, average: nn.Module | None
    ) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.weights = {MODEL: model} if average is None else {MODEL: model, AVERAGE: average}
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def all(self) -> list[Path]:
        """Every checkpoint, complete or not, the best first: of the last step, and not replaced."""
        places = (self.folder, self.folder / REPLACED)
        found = [path for place in places for path in place.glob("step-*")]
        return sorted(found, key=lambda path: path.name, reverse=True)

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next((path for path in self.all() if what_is_wrong(path) is None), None)

    def passed_over(self) -> list[tuple[Path, str]]:
        """Newer checkpoints than the latest complete one, and what is wrong with them."""
        newer = takewhile(lambda path: path != self.latest(), self.all())
        return [(path, what_is_wrong(path) or "is gone") for path in newer]

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; every process calls this.

        Raises:
            TpcliError: it could not be written (disk full, ...); the previous one is intact.
        """
        partial = self.folder / PARTIAL
        is_main = self.accelerator.is_main_process
        try:
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            self.accelerator.wait_for_everyone()
            if is_main:
                files = {path.name: checksum(path) for path in partial.iterdir()}
                write_json(partial / PROGRESS, {**asdict(progress), "files": files})
                settle(partial)
                self._put_in_place(partial, f"step-{progress.step:09d}")
                self._keep_best(progress)
        except (OSError, RuntimeError, SafetensorError, TpcliError) as error:
            told = self._why_not_saved(error)  # while the disk is still full
            shutil.rmtree(partial, ignore_errors=True)
            raise TpcliError(told) from error
        self.accelerator.wait_for_everyone()

    def _put_in_place(self, partial: Path, name: str) -> None:
        """Make `partial` the checkpoint `name`, then remove all others.

        One of the same step is moved aside first, to where it is still found.
        """
        target, aside = self.folder / name, self.folder / REPLACED
        if what_is_wrong(target) is None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            target.rename(aside / name)
        elif target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        flush(self.folder)
        self._keep_only(target)

    def _keep_only(self, checkpoint: Path) -> None:
        for other in self.all():
            if other != checkpoint:
                shutil.rmtree(other)
        for name in (PARTIAL, REPLACED):
            if checkpoint.parent.name != name:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def load(self) -> Progress | None:
        """Go back to the newest complete checkpoint, if any; every process calls this.

        Raises:
            TpcliError: there are checkpoints and none is complete, or it is damaged.
        """
        newest = self.latest() or next(iter(self.all()), None)
        if newest is None:
            return None
        wrong = what_is_wrong(newest, thoroughly=True)
        if wrong is not None:
            raise TpcliError(f"checkpoint {newest} {wrong}; start over with `force`.")
        try:
            self.accelerator.load_state(str(newest))
            document = read_json(newest / PROGRESS)
            progress = Progress(**{k: value for k, value in document.items() if k != "files"})
        except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise TpcliError(
                f"checkpoint {newest} can't be read ({error}); start over with `force`."
            ) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._keep_best(progress)
            self._keep_only(newest)
        self.accelerator.wait_for_everyone()
        self._check_best(progress)
        return progress

    def save_best(self, weights: Mapping[str, Tensor]) -> list[int]:
        """Write the best weights so far; the main process calls this.

        They take the place of those before with the next `save` of progress that knows them.
        Returns size and checksum, for `Progress.best`.
        """
        fresh = self.folder / f"{PARTIAL}-{BEST}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_weights(weights, fresh)
            settle(fresh)
            return checksum(fresh)
        except (OSError, SafetensorError) as error:
            told = self._why_not_saved(error)
            fresh.unlink(missing_ok=True)
            raise TpcliError(told) from error

    def _keep_best(self, progress: Progress) -> None:
        """Have in place the best weights that `progress` speaks of."""
        fresh = self.folder / f"{PARTIAL}-{BEST}"
        if fresh.exists() and checksum(fresh) == progress.best.get("file"):
            fresh.replace(self.folder / BEST)
            flush(self.folder)
        fresh.unlink(missing_ok=True)

    def _check_best(self, progress: Progress) -> None:
        path, written = self.folder / BEST, progress.best.get("file")  # older versions wrote none
        if not path.is_file() or (written is not None and checksum(path) != written):
            raise TpcliError(f"{path} is not what was written; start over with `force`.")

    def load_best(self, progress: Progress) -> dict[str, Tensor]:
        """The best weights of `progress`.

        Raises:
            TpcliError: they are damaged or gone.
        """
        self._check_best(progress)
        return load_file(self.folder / BEST)

    def _save_weights(
        self, models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str
    ) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            for name, model in self.weights.items():
                write_weights(model.state_dict(), Path(folder) / name)

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        for name, model in self.weights.items():
            model.load_state_dict(load_file(Path(folder) / name))

    def _why_not_saved(self, error: Exception) -> str:
        kept = self.latest()
        rest = f"the previous one, {kept.name}, is intact" if kept else "there is no previous one"
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        reason = why_not_written(cause, self.folder.parent)
        reason = reason or str(error).splitlines()[0].rstrip(".")
        free = shutil.disk_usage(self.folder.parent).free / 1e9
        return (
            f"the checkpoint in {self.folder} could not be written ({reason}; {free:.1f} GB free); "
            f"{rest}; make room and run the same command again."
        )


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a state_dict as safetensors."""
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, path)
