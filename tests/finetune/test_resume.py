"""No work is lost: a run that was stopped anywhere ends as one that was not."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import forks
from tests.helpers.images import class_folders
from tpcli.errors import TpcliError, UserError
from tpcli.finetune import Interrupted, Watcher, finetune, open_data
from tpcli.finetune.trainer import Trainer
from tpcli.models.load import load

from .conftest import QUICK, Run, quick_options

STEPS = 8  # 2 epochs of 4


class KillAt:
    """Ends a process before it saves what it has after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def __call__(self) -> None:
        saved = Trainer.save_if_due

        def save_or_die(trainer: Trainer) -> None:
            if trainer.progress.step == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            saved(trainer)

        Trainer.save_if_due = save_or_die  # type: ignore[method-assign]


class Stopper(Watcher):
    """Does something after a step."""

    def __init__(self, step: int, action: object) -> None:
        self.at, self.action = step, action

    def step(self, *, step: int, **rest: object) -> None:
        if step == self.at:
            self.action()  # type: ignore[operator]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "checkpoints/best.safetensors"):
        assert_same_file(one / name, other / name)
    step = f"checkpoints/step-{STEPS:09d}"
    for name in ("model.safetensors", "average.safetensors"):
        assert_same_file(one / step / name, other / step / name)


def assert_same_file(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "seconds")} for r in rows]


@pytest.fixture
def copied(straight: Path, tmp_path: Path) -> Path:
    """That run, to be changed."""
    return shutil.copytree(straight, tmp_path / "copied")


@pytest.mark.parametrize(
    "step", [4, *(pytest.param(step, marks=pytest.mark.long) for step in (1, 6))]
)
def test_sigterm_and_resume_end_with_the_same_weights(
    run: Run, straight: Path, tmp_path: Path, step: int
) -> None:
    out = tmp_path / "stopped"
    with pytest.raises(Interrupted, match=f"SIGTERM after .*{step if step != 4 else ''}.*again"):
        run(out, watcher=Stopper(step, terminate))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not (out / "config.json").exists()  # no model before it is complete
    run(out)
    assert_same_weights(straight, out)
    assert lines(out) == lines(straight)
    assert [row["epoch"] for row in lines(out)] == ["0", "1", "2"]


@pytest.mark.long
def test_sigkill_at_random_steps_and_resume_end_with_the_same_weights(
    straight: Path, tiny: Path, tmp_path: Path
) -> None:
    """Killed in processes of their own, with a checkpoint after each step."""
    out = tmp_path / "killed"
    options = [*quick_options(tiny, out), "--save-minutes", 0]
    first, second = sorted(random.Random(0).sample(range(1, STEPS), 2))
    for step in (first, second):
        assert forks.run(tmp_path, *options, prepare=KillAt(step)).code == -signal.SIGKILL
    last = forks.run(tmp_path, *options)
    assert last.code == 0, last.err
    assert f"after step {second - 1}" in last.err
    assert_same_weights(straight, out)
    assert lines(out) == lines(straight)


def test_a_complete_run_is_not_repeated(run: Run, copied: Path) -> None:
    stamp = (copied / "model.safetensors").stat().st_mtime_ns
    result = run(copied)
    assert (copied / "model.safetensors").stat().st_mtime_ns == stamp
    assert result == run(copied, resume=True)


def test_only_one_checkpoint_stays(straight: Path) -> None:
    names = sorted(p.name for p in (straight / "checkpoints").iterdir())
    assert names == ["best.safetensors", f"step-{STEPS:09d}"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": "tokens:12,8,6"}, r"schedule \(tokens per block\): \[12, 8, 5\] there"),
        ({"lr": 2e-3}, "`lr`: 0.001 there, 0.002 here"),
        ({"epochs": 3}, "`epochs`: 2 there, 3 here"),
        ({"limit": 66}, "number of training images: 67 there, 66 here"),
    ],
)
def test_resuming_something_else_is_refused(
    run: Run, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(out, watcher=Stopper(1, terminate))
    with pytest.raises(UserError, match=told):
        run(out, **changes)  # type: ignore[arg-type]


def test_resuming_another_model_is_refused(run: Run, tiny: Path, tmp_path: Path) -> None:
    from tpcli.models.save import save

    out, other = tmp_path / "out", load(str(tiny))
    with pytest.raises(Interrupted):
        run(out, watcher=Stopper(1, terminate))
    with torch.no_grad():
        other.model.head.bias.add_(1)  # type: ignore[union-attr, operator]
    save(other.model, tmp_path / "other")
    with pytest.raises(UserError, match=r"another model \(start weights\)"):
        run(out, model=tmp_path / "other")


def test_a_finished_run_is_not_that_of_a_model_with_other_heads(
    run: Run, straight: Path, tiny: Path, tmp_path: Path
) -> None:
    """Its weights have the same shapes."""
    other = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["model_args"]["num_heads"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="settings of the model"):
        run(shutil.copytree(straight, tmp_path / "run"), model=other)


def test_a_run_is_not_resumed_on_other_images(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split in ("train", "val"):
        class_folders(folder / split)
    recipe = replace(QUICK, epochs=1, distill=None)

    def go_on() -> None:
        loaded = load(str(tiny))
        data = open_data(str(folder), loaded.data_config, recipe)
        finetune(loaded, data, recipe, out=tmp_path / "out", device="cpu")

    go_on()
    go_on()  # complete already
    classes = sorted((folder / "val").iterdir())
    (classes[0] / "0.png").rename(classes[1] / "moved.png")
    with pytest.raises(UserError, match="validation images"):
        go_on()


def test_what_does_not_matter_may_change(run: Run, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(out, watcher=Stopper(3, terminate))
    run(out, workers=1, save_minutes=0.0, eval_batch_size=7)
    assert_same_weights(straight, out)


def test_a_foreign_folder_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no fine-tuning run"):
        run(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_resume_insists_on_a_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        run(tmp_path / "out", resume=True)


def test_force_starts_over(run: Run, copied: Path) -> None:
    assert run(copied, epochs=1, force=True).epochs == 1
    assert [row["epoch"] for row in lines(copied)] == ["0", "1"]
    assert sorted(os.listdir(copied.parent)) == [copied.name]


def test_a_loss_that_is_not_finite_stops_the_run(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(TpcliError, match=r"the (loss|gradient) is n.* at step \d, learning rate"):
        run(out, lr=1000.0, weight_decay=10.0, clip_grad=0.0, warmup_epochs=0.0, save_minutes=0.0)
    (kept,) = (out / "checkpoints").glob("step-*")
    assert all(v.isfinite().all() for v in load_file(kept / "model.safetensors").values())


def test_a_full_disk_keeps_the_checkpoint_before(run: Run, tmp_path: Path) -> None:
    """The limit on file sizes makes writing fail halfway, as a full disk does."""
    out = tmp_path / "out"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, unlimited[1]))
        terminate()

    with pytest.raises(Interrupted):
        run(out, watcher=Stopper(2, terminate))
    try:
        with pytest.raises(TpcliError, match=r"could not be written .* step-000000002, is intact"):
            run(out, watcher=Stopper(3, fill_disk))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert {p.name for p in (out / "checkpoints").iterdir()} == {
        "best.safetensors", "step-000000002"
    }  # fmt: skip
    run(out)


@pytest.mark.long
def test_sigterm_to_the_process_group(tiny: Path, tmp_path: Path) -> None:
    """As schedulers send it: to the processes that decode images too."""
    out = tmp_path / "out"
    options = [*quick_options(tiny, out), "--epochs", 1000, "--save-minutes", 0, "--workers", 1]
    process = forks.start(tmp_path, options, prepare=os.setsid)
    until = time.monotonic() + 60
    while not list((out / "checkpoints").glob("step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    stopped = process.wait()
    assert stopped.code == 130, stopped.err
    assert "stopped by SIGTERM after" in stopped.err
    assert "Traceback" not in stopped.err
    assert list((out / "checkpoints").glob("step-*"))
