"""Crashes before every file operation of a command, and what the same command makes of them.

`python -m tests.helpers.crashes [COMMAND ...]` runs the whole campaign and prints operations tried,
held and lost. A crash is `os._exit` in the process: buffers are not flushed, nothing is cleaned up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import timm
import torch

import tpcli
from tpcli.models.save import save

from . import forks
from .machines import known_times

CRASHED = 77
OPERATIONS = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink",
    "os.truncate", "shutil.rmtree",
}  # fmt: skip
"""Audit events of what changes files; `open` for writing, `fsync` and what C code writes join."""

SCHEDULE = ["--schedule", "tokens:40,30,20,10"]
TRAIN = [
    "finetune", "model", "--data", "demo", *SCHEDULE, "--limit", 16,
    "--batch-size", 8, "--epochs", 2, "--workers", 0, "--save-minutes", 0, "--precision", "fp32",
    "--device", "cpu", "--no-distill", "--out", "out",
]  # fmt: skip
SWEEP = [
    "pareto", "model", "--data", "demo", "--limit", 16, "--workers", 0, "--method", "ward",
    "--budget", "0.8", "--family", "default", "--device", "cpu", "--cache", "cache",
    "--out", "plot.svg",
]  # fmt: skip
COMMANDS: dict[str, list[object]] = {
    "finetune": TRAIN,
    "finetune --force": [*TRAIN, "--seed", 1, "--force"],
    "pareto": SWEEP,
    "pareto searched": [*SWEEP, "--schedule", "search"],
    "schedule": [
        "schedule", "model", "--data", "demo", "--images", 8, "--trials", 1, "--device", "cpu",
        "--out", "found.json",
    ],
    "optimize": [
        "optimize", "model", "--data", "demo", "--limit", 32, "--workers", 0, "--device", "cpu",
        "--method", "ward", "--budget", 0.8, "--batch-size", 1, "--seconds", 0, "--out", "best",
    ],
    "apply": ["apply", "model", *SCHEDULE, "--out", "pooled"],
    "apply --force": ["apply", "model", *SCHEDULE, "--out", "old", "--force"],
    "export": [
        "export", "model", *SCHEDULE, "--format", "torch-export", "--out", "m.pt2",
    ],
}  # fmt: skip
VOLATILE = {
    "seconds", "images_per_second", "measured", "files", "command", "date",
    "bench", "speedup", "forecast_error", "verdict",
}  # fmt: skip


def prepare_folder(folder: Path) -> Path:
    """A folder with a tiny model, a pooled one that may be replaced, and a run that may be."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=16, depth=4, num_heads=2,
        num_classes=10,
    )  # fmt: skip
    save(model, folder / "model")
    tpcli.pool(model, "tokens:50,40,30,20")
    save(model, folder / "old")
    return folder


class Watch:
    """Counts file operations in `folder`, and crashes before one of them."""

    def __init__(self, folder: Path, crash_at: int | None, log: Path | None = None) -> None:
        self.folder = str(folder.resolve())
        self.crash_at = crash_at
        self.log = log
        self.count = 0

    def __call__(self) -> None:
        """Begin, in this process, for good."""
        search_little()
        sys.addaudithook(self.hear)
        self.hook(os, "fsync")
        self.hook(safetensors.torch, "serialize_file")
        self.hook(torch._C, "PyTorchFileWriter")

    def hook(self, home: Any, name: str) -> None:
        real = getattr(home, name)

        def told(*arguments: Any, **named: Any) -> Any:
            self.step(name)
            return real(*arguments, **named)

        setattr(home, name, told)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.meet(f"open {path}", path)
        elif event in OPERATIONS:
            self.meet(f"{event} {arguments}", arguments[0])

    def meet(self, what: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if os.path.isabs(name) and not name.startswith(self.folder):
                return
            self.step(what)

    def step(self, what: str) -> None:
        if self.count == self.crash_at:
            os._exit(CRASHED)
        self.count += 1
        if self.log is not None:
            self.log.write_text(f"{self.count}")


def search_little() -> None:
    """Searches write as ever, but try little in between, and time on a machine that is always the
    same."""
    import tpcli.bench.time_cost
    import tpcli.optimize.plans
    import tpcli.search

    tpcli.bench.time_cost.time_parts = known_times
    tpcli.optimize.plans.TRIALS = 2
    tpcli.search.SearchOptions = partial(tpcli.search.SearchOptions, budgets=(0.8,), trials=1)  # type: ignore[assignment, misc]


@dataclass
class Tally:
    """Operations before which a command was ended, and those after which something was lost."""

    operations: int
    tried: int = 0
    lost: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        return self.tried - len(self.lost)


def campaign(name: str, home: Path, choose: Callable[[int], Iterable[int]]) -> Tally:
    """Crash the command before the operations that `choose` picks of so many; run it again."""
    command = COMMANDS[name]
    template = prepare_folder(home / "template")
    if name == "finetune --force":
        assert forks.run(template, *TRAIN).code == 0
    whole = _copy(template, home / "whole")
    counter = home / "count"
    outcome = forks.run(whole, *command, prepare=Watch(whole, None, counter))
    assert outcome.code == 0, outcome.err
    expected = contents(whole)
    tally = Tally(int(counter.read_text()))
    for point in choose(tally.operations):
        folder = _copy(template, home / f"crash-{point}")
        crashed = forks.run(folder, *command, prepare=Watch(folder, point))
        wrong = None
        if crashed.code != CRASHED:
            wrong = f"ended with {crashed.code} instead: {crashed.err}"
        else:
            wrong = again(folder, command, expected)
        tally.tried += 1
        if wrong is not None:
            tally.lost.append(f"{name}, operation {point}: {wrong}")
        shutil.rmtree(folder)
    return tally


def again(folder: Path, command: list[object], expected: dict[str, str]) -> str | None:
    """Run a command that was ended once more; what is wrong then, or None."""
    steps = sorted(p.parent.name for p in folder.glob("**/step-*/progress.json"))
    points = {p: p.stat().st_mtime_ns for p in folder.glob("cache/points/*.json")}
    complete = contents(folder, hidden=False) == expected
    outcome = forks.run(folder, *command, prepare=search_little)
    is_done = complete and outcome.code == 2 and "exists already" in outcome.err
    if outcome.code != 0 and not is_done:
        return f"refused: {outcome.err.strip()}"
    if steps and "--force" not in command:
        step = int(steps[-1].removeprefix("step-"))
        if f"after step {step}" not in outcome.err and "complete already" not in outcome.err:
            return f"work lost: {steps} were there, and it said: {outcome.err.strip()}"
    if any(path.stat().st_mtime_ns != time for path, time in points.items()):
        return "a point was measured twice"
    found = contents(folder)
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))
        return f"another result: {odd[:4]}"
    return None


def contents(folder: Path, hidden: bool = True) -> dict[str, str]:
    """What is in a folder: a digest of each file, without what differs from run to run."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not hidden and any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        files[name] = "" if path.is_dir() else hashlib.sha256(_steady(path)).hexdigest()[:8]
    return files


def _steady(path: Path) -> bytes:
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(path.read_text()))).encode()
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table[[c for c in table if c not in VOLATILE]].to_csv().encode()
    if path.suffix in (".safetensors", ".toml"):
        return path.read_bytes()
    return b"some" if path.stat().st_size else b"none"


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if k not in VOLATILE and k != "file"}
    return [_without(v) for v in value] if isinstance(value, list) else value


def _copy(template: Path, folder: Path) -> Path:
    shutil.copytree(template, folder)
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| command | operations | tried | held | lost |\n| --- | ---: | ---: | ---: | ---: |")
    stride = int(os.environ.get("STRIDE", "1"))
    failures = []
    for chosen in sys.argv[1:] or COMMANDS:
        with tempfile.TemporaryDirectory() as scratch:
            result = campaign(chosen, Path(scratch), lambda n: range(0, n, stride))
        failures += result.lost
        row = (chosen, result.operations, result.tried, result.held, len(result.lost))
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    print("\n".join(failures))
    sys.exit(bool(failures))
