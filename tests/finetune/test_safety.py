"""Nothing is lost: what a run replaces, who may write, and checkpoints at every instant."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from tpcli.errors import TpcliError, UserError
from tpcli.finetune import Interrupted, Watcher
from tpcli.finetune.checkpoint import Checkpoints, what_is_wrong
from tpcli.finetune.folder import RunFolder
from tpcli.system.files import PARTIAL, locked

from .conftest import Run
from .test_resume import STEPS, Stopper, assert_same_weights, lines, terminate

LAST = f"step-{STEPS:09d}"


class Notes(Watcher):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def copied(straight: Path, tmp_path: Path) -> Path:
    return shutil.copytree(straight, tmp_path / "copied")


def test_a_run_is_replaced_only_when_the_new_one_is_complete(
    run: Run, straight: Path, copied: Path
) -> None:
    with pytest.raises(Interrupted):
        run(copied, seed=1, force=True, watcher=Stopper(3, terminate))
    assert_same_weights(straight, copied)
    notes = Notes()
    run(copied, seed=1, force=True, watcher=notes)
    assert any("after step 3" in note for note in notes.said)
    assert json.loads((copied / "run.json").read_text())["identity"]["seed"] == 1
    assert os.listdir(copied.parent) == [copied.name]


def test_a_run_of_a_version_without_hashes_is_gone_on_with(run: Run, copied: Path) -> None:
    file = copied / "run.json"
    document = json.loads(file.read_text())
    for name in ("modules", "train_content", "validation_content"):
        document["identity"].pop(name)
    file.write_text(json.dumps(document))
    notes = Notes()
    run(copied, watcher=notes)
    assert any("complete already" in note for note in notes.said)


def test_another_forced_run_does_not_go_on_with_the_first(run: Run, copied: Path) -> None:
    with pytest.raises(Interrupted):
        run(copied, seed=1, force=True, watcher=Stopper(3, terminate))
    notes = Notes()
    run(copied, seed=2, force=True, watcher=notes)
    assert not any("after step" in note for note in notes.said)
    assert json.loads((copied / "run.json").read_text())["identity"]["seed"] == 2


@pytest.mark.parametrize("foreign", ["thesis.tex", "2024/a.jpg"])
def test_a_folder_with_something_else_is_never_replaced(
    run: Run, tmp_path: Path, foreign: str
) -> None:
    file = tmp_path / "out" / foreign
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(UserError, match="a fine-tuning run"):
        run(tmp_path / "out", force=True)
    assert file.read_text() == "precious"


def test_a_run_with_something_else_in_its_folder_is_not_replaced(run: Run, copied: Path) -> None:
    (copied / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"notes\.txt"):
        run(copied, seed=1, force=True)
    assert (copied / "notes.txt").exists()


def test_two_runs_on_one_folder(run: Run, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".out.lock"),
        pytest.raises(UserError, match=rf"being written by process {os.getpid()} on .*, since 20"),
    ):
        run(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_killed_in_its_first_moments(run: Run, straight: Path, tmp_path: Path) -> None:
    """Before run.json was there: only what hidden folders hold, and perhaps the empty folder."""
    out = tmp_path / "out"
    (out / f".run.json.abc{PARTIAL}").mkdir(parents=True)
    run(out)
    assert_same_weights(straight, out)
    assert not list(out.glob(".*"))


def test_a_lost_line_of_metrics_comes_back(run: Run, straight: Path, copied: Path) -> None:
    for name in ("metrics.csv", "result.json"):
        (copied / name).unlink()
    run(copied)
    assert lines(copied) == lines(straight)


def double_save(monkeypatch: pytest.MonkeyPatch, out: Path) -> list[str]:
    """Look for a complete checkpoint before everything that saving one does to names."""
    seen = []

    def look(*arguments: object) -> None:
        complete = [p for p in out.glob("checkpoints/**/step-*") if what_is_wrong(p) is None]
        seen.append(max((p.name for p in complete), default=""))

    for home, name in ((Path, "rename"), (os, "rename"), (shutil, "rmtree"), (Path, "rmdir")):
        real = getattr(home, name)

        def told(*arguments: object, real: object = real, **named: object) -> object:
            look()
            return real(*arguments, **named)  # type: ignore[operator]

        monkeypatch.setattr(home, name, told)
    return seen


def test_a_checkpoint_written_twice_is_there_all_the_time(
    run: Run, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --save-minutes 0 the last step of each epoch is written twice."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        seen = double_save(patch, out)
        run(out, save_minutes=0.0)
    after_first = seen[seen.index("step-000000001") :]
    assert "" not in after_first
    assert after_first == sorted(after_first)
    assert sorted(os.listdir(out / "checkpoints")) == ["best.safetensors", LAST]
    assert_same_weights(straight, out)


def test_one_that_was_moved_aside_is_found(run: Run, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(out, watcher=Stopper(4, terminate))
    checkpoint = out / "checkpoints" / "step-000000004"
    aside = out / "checkpoints" / ".replaced"
    aside.mkdir()
    checkpoint.rename(aside / checkpoint.name)
    notes = Notes()
    run(out, watcher=notes)
    assert any("after step 4" in note for note in notes.said)
    assert_same_weights(straight, out)


@pytest.fixture
def stopped(run: Run, tmp_path: Path) -> Path:
    """The checkpoint of a run that was stopped after step 3."""
    with pytest.raises(Interrupted):
        run(tmp_path / "out", watcher=Stopper(3, terminate))
    return tmp_path / "out" / "checkpoints" / "step-000000003"


def test_an_incomplete_checkpoint_is_passed_over_and_named(
    run: Run, straight: Path, stopped: Path
) -> None:
    broken = shutil.copytree(stopped, stopped.with_name("step-000000005"))
    (broken / "optimizer.bin").unlink()
    notes = Notes()
    run(stopped.parents[1], watcher=notes)
    assert f"checkpoint {broken} is incomplete: it has no optimizer.bin; it is passed over" in (
        notes.said
    )
    assert any("after step 3" in note for note in notes.said)
    assert_same_weights(straight, stopped.parents[1])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("random_states_0.pkl", "gone"),
        ("random_states_0.pkl", "other"),
        ("model.safetensors", "other"),
        ("average.safetensors", "gone"),
        ("optimizer.bin", "shorter"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(stopped: Path, name: str, how: str) -> None:
    file = stopped / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content if how == "other" else content[:-1])
    assert name in str(what_is_wrong(stopped, thoroughly=True))


@pytest.mark.parametrize("how", ["gone", "other"])
def test_a_run_does_not_go_on_with_other_random_numbers(run: Run, stopped: Path, how: str) -> None:
    file = stopped / "random_states_0.pkl"
    content = file.read_bytes()
    file.unlink()
    if how == "other":
        file.write_bytes(bytes(len(content)))
    with pytest.raises(TpcliError, match=r"random_states_0.pkl.*; start over with `force`"):
        run(stopped.parents[1])


def test_damaged_best_weights_are_an_error(run: Run, stopped: Path) -> None:
    best = stopped.parent / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1] + b"x")
    with pytest.raises(TpcliError, match=r"best.safetensors is not what was written"):
        run(stopped.parents[1])


def test_best_weights_go_with_the_checkpoint_that_knows_them(
    run: Run, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between the two: those of the epoch that is run again don't count yet."""
    out = tmp_path / "out"
    saved, calls = Checkpoints.save_best, []

    def save_and_stop(self: Checkpoints, weights: dict[str, torch.Tensor]) -> list[int]:
        found = saved(self, weights)
        calls.append(found)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_best", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(out, save_minutes=0.0)
    run(out)
    assert_same_weights(straight, out)
    assert lines(out) == lines(straight)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["lr", "weight_decay", "mixup", "clip_grad", "min_lr", "distill_temperature"]
)
def test_numbers_that_are_none_leave_nothing(
    run: Run, tmp_path: Path, name: str, value: float
) -> None:
    with pytest.raises(UserError, match=r"(inf|nan)"):
        run(tmp_path / "out", **{name: value})
    assert os.listdir(tmp_path) == []


def test_a_damaged_record_is_named(run: Run, copied: Path) -> None:
    (copied / "run.json").write_text('{"identity": 3}')
    with pytest.raises(UserError, match=r"run.json is no file of a fine-tuning run"):
        run(copied)
    assert RunFolder(copied, {}).result() is not None
