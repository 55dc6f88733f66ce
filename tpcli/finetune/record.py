"""The result folder: what belongs to a run, whether it is this one, and its metrics."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpcli.errors import UserError
from tpcli.files import check_output, read_json, write_json, write_text
from tpcli.recipe import option_name

RUN, RESULT, CONFIG, METRICS, CURVE, CHECKPOINTS = (
    "run.json",
    "result.json",
    "config.toml",
    "metrics.csv",
    "curve.png",
    "checkpoints",
)
FORMAT = "tpcli-finetune/1"
COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "top1",
    "average_top1",
    "images_per_second",
    "seconds",
)


class RunFolder:
    """`--out` of a run.

    identity: what determines the result, by the name that the user knows it by.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    def check(self, resume: bool = False, force: bool = False) -> None:
        """Raise unless the folder is free, or holds this very run.

        Raises:
            UserError: it can't be written, is not a run of ours, or one that differs; says in what.
        """
        check_output(self.path, is_folder=True)
        check_output(self.path / RUN)
        if force:
            return
        occupied = self.path.exists() and any(self.path.iterdir())
        if not occupied:
            if resume:
                raise UserError(f"{self.path} holds no run to resume; leave out --resume.")
            return
        if not (self.path / RUN).is_file():
            raise UserError(
                f"{self.path} exists and is no fine-tuning run; choose another --out, or replace "
                "it with --force."
            )
        difference = first_difference(read_json(self.path / RUN).get("identity", {}), self.identity)
        if difference:
            raise UserError(
                f"{self.path} holds a run with {difference}; repeat the options of that run "
                f"(--config {self.path / CONFIG}), choose another --out, or start over by --force."
            )

    def begin(self, config: Mapping[str, Any], force: bool = False) -> None:
        """Make the folder and write whose it is; the main process calls this, after `check`."""
        try:
            if force and self.path.is_dir():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written ({error.strerror}); choose another --out."
            ) from error
        if not (self.path / RUN).is_file():
            write_text(self.path / CONFIG, to_toml(config))
            write_json(self.path / RUN, {"format": FORMAT, "identity": self.identity, "scores": {}})

    def scores(self) -> dict[str, Any]:
        """What was measured before training, or nothing yet."""
        stored: dict[str, Any] = read_json(self.path / RUN)["scores"]
        return stored

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Remember what was measured before training."""
        document = {"format": FORMAT, "identity": self.identity, "scores": scores}
        write_json(self.path / RUN, document)

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.csv anew, one line per epoch; line 0 is the model before training."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
        write_text(self.path / METRICS, text.getvalue())

    def result(self) -> dict[str, Any] | None:
        """The result, where the run is complete."""
        path = self.path / RESULT
        return read_json(path) if path.is_file() else None


def first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two identities differ, in words, or None."""
    for name in [*now, *(name for name in then if name not in now)]:
        before, after = then.get(name), now.get(name)
        if before != after:
            label = option_name(name) if name not in SPOKEN else SPOKEN[name]
            return f"another {label}: {_told(before)} there, {_told(after)} here"
    return None


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
        if value is not None:
            lines.append(f"{name.replace('_', '-')} = {_toml_value(value)}\n")
    return "".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _short(value: float) -> float | str:
    return f"{value:.6g}" if isinstance(value, float) else value
