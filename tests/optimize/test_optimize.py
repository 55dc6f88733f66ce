"""From targets to a folder: on the demo, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from tests.helpers.cli import Run
from tests.helpers.images import picture
from tests.helpers.machines import known_times
from tests.helpers.models import tiny_vit
from tpcli.bench.clock import BenchOptions
from tpcli.config.options import pooling_options
from tpcli.data import create
from tpcli.errors import TpcliError, UserError
from tpcli.models.load import LoadedModel, load
from tpcli.optimize.options import OptimizeOptions, Targets
from tpcli.optimize.result import Optimized
from tpcli.optimize.run import optimize
from tpcli.surgery import pooling_spec
from tpcli.system.resume import Progress

OPTIONS = OptimizeOptions(
    [pooling_options("ward")],
    BenchOptions(batch_size=4, device="cpu", seconds=0),
    images=16,
)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load("demo")


@pytest.fixture(autouse=True)
def _known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpcli.bench.time_cost.time_parts", known_times)


def run_demo(demo: LoadedModel, targets: Targets, limit: int = 64, **more: Any) -> Optimized:
    data = create("demo", demo.data_config, limit=limit)
    return optimize(demo, data, targets, OPTIONS, **more)


class Begun:
    """Labels of the measurements that begin; interrupts before the held-out images."""

    def __init__(self, is_stopped: bool = False) -> None:
        self.labels: list[str] = []
        self.is_stopped = is_stopped

    def __call__(self, label: str, total: int | None) -> Callable[[int], None]:
        self.labels.append(label)
        if self.is_stopped and label.startswith("held-out"):
            raise KeyboardInterrupt
        return lambda done: None

    @property
    def raced(self) -> list[str]:
        """Those of candidates on selection images."""
        return [label for label in self.labels if "x" in label.partition(", ")[2]]


@dataclass(frozen=True)
class Runs:
    """One run that was interrupted before its last step, and the same one resumed."""

    stopped: Begun
    resumed: Begun
    found: Optimized


@pytest.fixture(scope="module")
def runs(demo: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    path = tmp_path_factory.mktemp("runs") / "progress"
    stopped, resumed = Begun(is_stopped=True), Begun()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tpcli.bench.time_cost.time_parts", known_times)
        with pytest.raises(KeyboardInterrupt):
            run_demo(demo, Targets(budget=0.6), progress=Progress(path), on_pass=stopped)
        assert pooling_spec(demo.model) is None
        found = run_demo(demo, Targets(budget=0.6), progress=Progress(path), on_pass=resumed)
    return Runs(stopped, resumed, found)


@pytest.mark.long
def test_a_budget_is_met_with_the_least_loss(demo: LoadedModel, runs: Runs) -> None:
    found = runs.found
    assert found.met
    assert found.reason == ""
    assert found.gflops_ratio is not None
    assert 0.5 < found.gflops_ratio <= 0.6
    assert found.chosen is not None
    running = [tried for tried in found.tried if not tried.out]
    assert found.chosen.lost.points == min(tried.lost.points for tried in running)
    assert found.images == (32, 32)
    assert found.checked is not None
    assert found.checked.lost.count == 32
    assert pooling_spec(demo.model) is None
    assert {tried.candidate.plan.name for tried in found.tried} <= {
        "default", "constant r", "2 blocks", "3 blocks", "4 blocks", "searched",
    }  # fmt: skip


@pytest.mark.long
def test_a_run_that_was_stopped_resumes(runs: Runs) -> None:
    assert runs.stopped.raced
    assert not runs.resumed.raced


def test_the_choice_never_sees_held_out_images(demo: LoadedModel, runs: Runs) -> None:
    """Wrong labels on the held-out half change the check alone."""
    order = np.random.default_rng(OPTIONS.seed).permutation(64)
    data = create("demo", demo.data_config, limit=64)
    images, held_out = data.images, set(order[32:].tolist())

    class Corrupted(Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, i: int) -> Any:
            image, target = images[i]
            return image, (target + 1) % 10 if i in held_out else target

    data = replace(data, images=Corrupted())
    other = optimize(demo, data, Targets(budget=0.6), OPTIONS)
    assert runs.found.chosen is not None
    assert other.chosen is not None
    assert other.chosen.candidate.tokens == runs.found.chosen.candidate.tokens
    assert other.chosen.lost == runs.found.chosen.lost
    assert other.checked is not None
    assert other.checked.base.score < 20


def test_remembered_scores_are_of_these_images_and_labels(tmp_path: Path) -> None:
    """Other targets take them; corrected labels or another split into halves measure again."""
    for name in map(str, range(10)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            picture(10 * int(name) + i, 8).save(tmp_path / "set" / name / f"{i}.png")
    config = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    loaded = LoadedModel(tiny_vit(depth=2, num_classes=10), "tiny", config)

    def raced(targets: Targets, **options: Any) -> list[str]:
        begun, data = Begun(is_stopped=True), create(str(tmp_path / "set"), config)
        progress = Progress(tmp_path / "progress")
        chosen = replace(OPTIONS, images=4, measure="top1", **options)
        with suppress(KeyboardInterrupt):
            optimize(loaded, data, targets, chosen, progress=progress, on_pass=begun)
        return begun.raced

    target = Targets(budget=0.7)
    assert raced(target)
    assert raced(target) == []
    assert raced(Targets(budget=0.7, risk="mean")) == []
    assert raced(target, seed=1)
    (tmp_path / "set/0/0.png").rename(tmp_path / "set/1/corrected.png")
    assert raced(target)


def test_a_speed_that_is_out_of_reach_is_said_before_images_are_run(demo: LoadedModel) -> None:
    begun = Begun()
    with pytest.raises(TpcliError, match="500"):
        run_demo(demo, Targets(speedup=500), on_pass=begun)
    assert begun.labels == ["timing ward"]


@pytest.mark.parametrize(
    ("targets", "limit", "named"),
    [
        (Targets(max_drop=0.5), 64, r"10\.72 .*0\.5"),
        (Targets(max_drop=0.0), 64, "drop of 0"),
        (Targets(budget=0.5), 20, "20 images"),
        (Targets(max_drop=0.0, risk="mean"), 20, "20 images"),
    ],
)
def test_too_few_images_are_refused(
    demo: LoadedModel, targets: Targets, limit: int, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        run_demo(demo, targets, limit)


@pytest.mark.long
def test_the_training_split_is_used_where_half_is_too_small(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpcli.optimize.plans.LEVELS", (0.8, 0.6))
    train = create("demo", demo.data_config, split="train", limit=64)
    found = run_demo(demo, Targets(max_drop=8.0), limit=32, open_bank=lambda: train)
    assert found.chosen_on == "train"
    assert found.images == (64, 32)


def test_a_missed_target_names_what_is_near(demo: LoadedModel) -> None:
    """So many FLOPs fewer and nothing lost can't be had."""
    found = run_demo(demo, Targets(max_drop=0.0, budget=0.15, risk="mean"))
    assert not found.met
    assert found.nearest
    assert found.reason
    assert found.verdict.startswith(found.reason)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["met"] is False
    assert document["nearest"][0]["schedule"].startswith("tokens:")


LINE = ("optimize", "--budget", 0.6, "--method", "ward", "--limit", 64, "--seconds", 0,
        "--workers", 0, "--device", "cpu", "--batch-size", 4)  # fmt: skip


def test_the_command_writes_a_model_that_says_how_it_was_made(run: Run, tmp_path: Path) -> None:
    said = run(*LINE, "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    folder = tmp_path / "demo-optimized"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "optimize.json", "report.html"}
    stored = json.loads((folder / "optimize.json").read_text())
    assert stored["chosen"]["tokens"] == document["chosen"]["tokens"]
    assert stored["made_by"]["command"].startswith("tpcli optimize --budget 0.6")
    spec = pooling_spec(load(str(folder)).model)
    assert spec is not None
    assert list(spec.schedule.tokens) == document["chosen"]["tokens"]
    page = (folder / "report.html").read_text()
    assert document["verdict"] in page.replace("&#43;", "+")
    assert page.count('<tr class="frontier">') == 1  # the chosen one
    assert not list(tmp_path.glob(".demo-optimized*"))
    refused = run(*LINE)
    assert (refused.code, "exists already" in refused.err) == (2, True)


@pytest.mark.long
def test_nothing_is_saved_where_an_aim_is_missed(run: Run, tmp_path: Path) -> None:
    line = ("optimize", "--max-drop", 0, "--risk", "mean", "--budget", 0.15, *LINE[3:])
    said = run(*line)
    assert said.code == 1
    assert "nearest" in said.out
    assert "nothing was saved" in said.err
    assert not (tmp_path / "demo-optimized").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--max-drop", 1, "--speedup", 2, "--budget", 0.5), "budget"),
        (("--speedup", 0.5), "0.5"),
        (("--budget", 2), "budget 2"),
        (("--risk", "bold"), "bold"),
        (("--measure", "top1", "--bank", "pooled"), "--bank"),
        (("mine/",), "mine/"),
    ],
)
def test_bad_input_is_refused(run: Run, more: tuple[object, ...], named: str) -> None:
    said = run("optimize", *more)
    assert said.code == 2
    assert named in said.err
