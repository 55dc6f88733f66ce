"""From aims to a folder: on the demo, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.utils.data import Dataset

from tests.helpers.cli import Run
from tests.helpers.machines import machine
from tpcli.bench.clock import BenchOptions
from tpcli.config.options import pooling_options
from tpcli.config.schedule import Tokens
from tpcli.data import create
from tpcli.errors import TpcliError, UserError
from tpcli.models.load import LoadedModel, load
from tpcli.optimize.options import Aims, OptimizeOptions
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


def run_demo(demo: LoadedModel, aims: Aims, limit: int = 64, **more: Any) -> Optimized:
    data = create("demo", demo.data_config, limit=limit)
    return optimize(demo, data, aims, OPTIONS, **more)


def test_a_budget_is_met_with_the_least_loss(demo: LoadedModel) -> None:
    found = run_demo(demo, Aims(budget=0.6))
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


def known_times(model: nn.Module, pooling: object, schedules: list[Tokens], *_: object) -> Any:
    """Of a machine whose time goes with the tokens alone."""
    return [machine(t, float, float, inside=True) for t in ((64,) * len(schedules[0]), *schedules)]


def test_the_choice_never_sees_what_is_held_back(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong labels on the held-back half change the check alone."""
    monkeypatch.setattr("tpcli.bench.time_cost.time_parts", known_times)
    plain = run_demo(demo, Aims(budget=0.6))
    order = np.random.default_rng(OPTIONS.seed).permutation(64)

    data = create("demo", demo.data_config, limit=64)
    images, held_back = data.images, set(order[32:].tolist())

    class Spoilt(Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, i: int) -> Any:
            image, target = images[i]
            return image, (target + 1) % 10 if i in held_back else target

    data = replace(data, images=Spoilt())
    other = optimize(demo, data, Aims(budget=0.6), OPTIONS)
    assert plain.chosen is not None
    assert other.chosen is not None
    assert other.chosen.candidate.tokens == plain.chosen.candidate.tokens
    assert other.chosen.lost == plain.chosen.lost
    assert other.checked is not None
    assert other.checked.base.score < 20


def test_a_run_that_was_stopped_goes_on(demo: LoadedModel, tmp_path: Path) -> None:
    begun: list[str] = []

    def stop(label: str, total: int | None) -> Callable[[int], None]:
        begun.append(label)
        if label.startswith("held-back"):
            raise KeyboardInterrupt
        return lambda done: None

    with pytest.raises(KeyboardInterrupt):
        run_demo(demo, Aims(budget=0.6), progress=Progress(tmp_path / "notes"), on_pass=stop)
    assert pooling_spec(demo.model) is None
    first = [label for label in begun if "," in label]
    begun.clear()

    def go_on(label: str, total: int | None) -> Callable[[int], None]:
        begun.append(label)
        return lambda done: None

    found = run_demo(demo, Aims(budget=0.6), progress=Progress(tmp_path / "notes"), on_pass=go_on)
    assert found.met
    assert first
    assert not [label for label in begun if "," in label and not label.startswith("timing")]


def test_a_speed_that_is_out_of_reach_is_said_before_images_are_run(demo: LoadedModel) -> None:
    begun: list[str] = []

    def note(label: str, total: int | None) -> Callable[[int], None]:
        begun.append(label)
        return lambda done: None

    with pytest.raises(TpcliError, match="speedup 500 can't be reached; the fastest schedule is"):
        run_demo(demo, Aims(speedup=500), on_pass=note)
    assert begun == ["timing ward"]


@pytest.mark.parametrize(
    ("aims", "limit", "message"),
    [
        (Aims(max_drop=0.5), 64, "promise no less than 10.72 points; max_drop 0.5 takes at least"),
        (Aims(max_drop=0.0), 64, "a drop of 0 can't be promised from any number"),
        (Aims(budget=0.5), 20, "has 20 images, too few to choose on one half"),
        (Aims(max_drop=0.0, risk="mean"), 20, "has 20 images, too few"),
    ],
)
def test_too_few_images_are_refused(
    demo: LoadedModel, aims: Aims, limit: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_demo(demo, aims, limit)


def test_the_training_split_steps_in_where_half_is_too_few(demo: LoadedModel) -> None:
    train = create("demo", demo.data_config, split="train", limit=128)
    found = run_demo(demo, Aims(max_drop=4.0), open_bank=lambda: train)
    assert found.chosen_on == "train"
    assert found.images == (128, 64)


def test_an_aim_that_is_missed_names_what_is_near(demo: LoadedModel) -> None:
    """So many FLOPs fewer and nothing lost can't be had."""
    found = run_demo(demo, Aims(max_drop=0.0, budget=0.15, risk="mean"))
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


def test_nothing_is_saved_where_an_aim_is_missed(run: Run, tmp_path: Path) -> None:
    line = ("optimize", "--max-drop", 0, "--risk", "mean", "--budget", 0.15, *LINE[3:])
    said = run(*line)
    assert said.code == 1
    assert "nearest" in said.out
    assert "nothing was saved" in said.err
    assert not (tmp_path / "demo-optimized").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-drop", 1, "--speedup", 2, "--budget", 0.5), "can't all be held; give one or two"),
        (("--speedup", 0.5), "'0.5' is out of range"),
        (("--budget", 2), "budget 2 is out of range"),
        (("--risk", "bold"), "'bold' is unknown; use one of upper, mean"),
        (("--measure", "top1", "--bank", "pooled"), "has no effect"),
        (("mine/",), "mine/"),
    ],
)
def test_bad_input_is_refused(run: Run, more: tuple[object, ...], message: str) -> None:
    said = run("optimize", *more)
    assert said.code == 2
    assert message in said.err
