"""The result folder: what belongs to a run, whether it is this one, and its metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from tpcli.config.outputs import FINETUNE_FORMAT
from tpcli.errors import TpcliError, UserError
from tpcli.system.files import (
    PARTIAL,
    REPLACED,
    Kind,
    check_output,
    clear_litter,
    has_format,
    holds_only,
    locked,
    put_back,
    read_json,
    swap,
    write_json,
    write_text,
)

OURS = ("run.json", "result.json", "config.toml", "metrics.csv", "curve.png", "checkpoints")
RUN, RESULT, CONFIG, METRICS, CURVE, CHECKPOINTS = OURS
PARTS = (*OURS, "config.json", "model.safetensors", ".model", "tpcli")
"""Beside those of the run the model's files and tensorboard's folder."""
FINETUNE_RUN = Kind("a fine-tuning run", holds_only(PARTS, RUN, has_format(FINETUNE_FORMAT)))


class RunFolder:
    """`out` of a run.

    A run that replaces another one grows in a hidden folder beside it, which takes its place when
    the run is complete.

    identity: what determines the result, by the name that the user knows it by.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any]) -> None:
        self.out = out
        self.path = out
        """Where the run is written."""
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out; the main process calls this before `check`.

        Raises:
            UserError: another process is at it.
        """
        check_output(self.out, is_folder=True)
        out = self.out.resolve()
        with ExitStack() as stack:
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                holder = stack.enter_context(locked(out.with_name(f".{out.name}.lock")))
                if holder is None:
                    put_back(self._beside / REPLACED, out.parent)
            except OSError as error:
                raise UserError(
                    f"{error.filename or self.out} can't be written ({error.strerror}); choose "
                    "another folder."
                ) from error
            if holder is not None:
                raise UserError(
                    f"{self.out} is being written by {holder}; wait for it, or choose another "
                    "folder."
                )
            yield

    @property
    def _beside(self) -> Path:
        out = self.out.resolve()
        return out.with_name(f".{out.name}.next")

    def check(self, resume: bool = False, force: bool = False) -> None:
        """Raise unless the folder is free, or holds this very run, or one that `force` replaces.

        Raises:
            UserError: it can't be written, is not a run of ours, or one that differs; says in what.
        """
        check_output(self.out, is_folder=True)
        check_output(self.out / RUN)
        entries = list(self.out.iterdir()) if self.out.exists() else []
        if all(entry.match(f".*{PARTIAL}") for entry in entries):
            if resume:
                raise UserError(f"{self.out} holds no run to resume; leave out `resume`.")
        elif force and not self._has_replaced():
            check_output(self.out, is_folder=True, kind=FINETUNE_RUN)
            self.path = self._beside / self.out.resolve().name
        elif not (self.out / RUN).is_file():
            raise UserError(
                f"{self.out} exists and is no fine-tuning run; choose another `out`, or move away "
                "what it holds."
            )
        else:
            difference = first_difference(self.stored("identity"), self.identity)
            if difference:
                raise UserError(
                    f"{self.out} holds a run with {difference}; repeat the options of that run "
                    f"(`config={self.out / CONFIG}`), choose another `out`, or start over by "
                    "`force`."
                )

    def _has_replaced(self) -> bool:
        """Whether this very run is complete, and its process was killed in clearing up."""
        old = self._beside / REPLACED / self.out.resolve().name
        is_complete = old.exists() and (self.out / RESULT).is_file()
        return is_complete and not first_difference(self.stored("identity"), self.identity)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Make the folder and write whose it is; the main process calls this, after `check`."""
        if self.path == self.out:
            shutil.rmtree(self._beside / REPLACED, ignore_errors=True)
        elif first_difference(self.stored("identity"), self.identity):
            shutil.rmtree(self._beside, ignore_errors=True)  # another run, which replaced none
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}); choose another `out`."
            ) from error
        clear_litter(self.path)
        if not (self.path / RUN).is_file():
            self.write_scores({})
        if not (self.path / CONFIG).is_file():
            write_text(self.path / CONFIG, to_toml(config))

    def finish(self) -> None:
        """Put a run that grew beside another one in its place; the main process calls this.

        Raises:
            UserError: there is now something else too in the folder that is to be replaced.
        """
        if self.path == self.out:
            return
        if self.out.exists():
            check_output(self.out, is_folder=True, kind=FINETUNE_RUN)
        try:
            swap(self.path, self.out.resolve(), self._beside / REPLACED)
        except OSError as error:
            raise TpcliError(
                f"{self.out} could not be replaced ({error.strerror}); the new run is in "
                f"{self.path}."
            ) from error
        shutil.rmtree(self._beside, ignore_errors=True)

    def stored(self, name: str) -> dict[str, Any]:
        """A part of run.json, "identity" or "scores" before training; empty where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / RUN
        if not path.is_file():
            return {}
        document = read_json(path)
        part = document.get(name, {}) if isinstance(document, dict) else None
        if not isinstance(part, dict):
            raise UserError(f"{path} is no file of a fine-tuning run; choose another folder.")
        return part

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Remember what was measured before training."""
        document = {"format": FINETUNE_FORMAT, "identity": self.identity, "scores": scores}
        write_json(self.path / RUN, document)

    def write_metrics(self, rows: Sequence[Mapping[str, float]], measure: str) -> None:
        """Write metrics.csv again, one line per epoch; line 0 is the model before training."""
        scores = (measure, f"average_{measure}")
        columns = ["epoch", "step", "lr", "train_loss", *scores, "images_per_second", "seconds"]
        table = pd.DataFrame(rows, columns=columns)
        write_text(self.path / METRICS, table.to_csv(index=False, float_format="%.6g"))

    def result(self) -> dict[str, Any] | None:
        """The result, where the run is complete."""
        path = self.path / RESULT
        return read_json(path) if path.is_file() else None


def first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two identities differ, in words, or None."""
    for name in {**now, **then}:
        before, after = then.get(name), now.get(name)
        if name in HASHED and before not in (None, after):  # older runs have none
            return f"other {HASHED[name]}"
        if name not in HASHED and before != after:
            label = SPOKEN.get(name, f"`{name}`")
            return f"another {label}: {_told(before)} there, {_told(after)} here"
    return None


HASHED = {
    "modules": "settings of the model",
    "train_content": "training images",
    "validation_content": "validation images",
}
SPOKEN = {
    "architecture": "model architecture",
    "weights": "model (start weights)",
    "tokens": "schedule (tokens per block)",
    "pooling": "pooling",
    "train_images": "number of training images",
    "validation_images": "number of validation images",
    "classes": "list of classes",
    "preprocessing": "preprocessing",
}


def to_toml(values: Mapping[str, Any]) -> str:
    """Flat values as TOML, by option name; None is left out."""
    lines = ["# tpcli finetune --config THIS_FILE repeats the run\n"]
    for name, value in values.items():
        if value is not None:  # of strings, numbers and lists JSON is TOML
            lines.append(f"{name.replace('_', '-')} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
