"""`tpcli finetune` from outside: streams, files, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch

from tpcli import load
from tpcli.cli.main import main
from tpcli.surgery import pooling_spec

from .conftest import LIMIT, SCHEDULE, Run, quick_options


def tpcli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the program in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["tpcli", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_json_and_files(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tpcli(monkeypatch, *quick_options(tiny, out), "--json") == 0
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document.keys() >= {"out", "epochs", "base_top1", "start_top1", "best_top1", "ratio"}
    assert (document["out"], document["epochs"], document["count"]) == (str(out), 2, LIMIT)
    assert 0 < document["ratio"] < 1
    assert document["best_top1"] >= document["final_top1"]
    assert "epoch 2/2: loss" in streams.err
    names = {path.name for path in out.iterdir()}
    assert names == {
        "checkpoints", "config.json", "config.toml", "curve.png", "metrics.csv",
        "model.safetensors", "result.json", "run.json",
    }  # fmt: skip
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_is_a_pooled_model_of_the_best_accuracy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tpcli(monkeypatch, *quick_options(tiny, out), "--json")
    best = json.loads(capsys.readouterr().out)["best_top1"]
    spec = pooling_spec(load(str(out)).model)
    assert spec is not None
    assert spec.schedule.tokens == (12, 8, 5)
    measure = ["eval", out, "--data", "demo", "--limit", LIMIT, "--device", "cpu", "--json"]
    assert tpcli(monkeypatch, *measure) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == best
    timm.create_model(f"local-dir:{out}", pretrained=True)
    assert json.loads((out / "config.json").read_text())["label_names"][3] == "3"


def test_scores_of_a_tuned_model_say_what_it_was_made_on(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of one that was pooled again from it, and in a sweep."""
    again = tmp_path / "again"
    assert tpcli(monkeypatch, "apply", straight, "--schedule", "r:1", "--out", again) == 0
    for model in (straight, again):
        for split, told in (("train", "trained on"), ("validation", "weights were chosen on")):
            capsys.readouterr()
            data = ["--data", "demo", "--split", split, "--limit", LIMIT, "--device", "cpu"]
            assert tpcli(monkeypatch, "eval", model, *data, "--json") == 0
            assert f"{told} about 100%" in json.loads(capsys.readouterr().out)["warning"]
    sweep = ["pareto", straight, *data, "--schedule", "r:1", "--cache", tmp_path / "cache"]
    assert tpcli(monkeypatch, *sweep, "--out", tmp_path / "x.png") == 0
    assert "weights were chosen on" in capsys.readouterr().err
    assert "weights were chosen on" in (tmp_path / "x.md").read_text()


@pytest.mark.long
def test_training_that_does_harm_leaves_the_model_as_it_was(run: Run, tmp_path: Path) -> None:
    result = run(
        tmp_path / "out", model=Path("demo"), schedule="r:2", epochs=1, lr=0.3, ema_decay=0.0
    )
    assert result.final_score < result.start_score
    assert (result.best_epoch, result.best_score) == (0, result.start_score)
    kept, started = load(str(tmp_path / "out")).model, load("demo").model
    for name, weight in started.state_dict().items():
        assert torch.equal(kept.state_dict()[name], weight), name


def test_the_written_config_repeats_the_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tpcli(monkeypatch, *quick_options(tiny, out))
    assert tpcli(monkeypatch, "finetune", "--config", out / "config.toml", "--out", out) == 0
    again = tmp_path / "again"
    assert tpcli(monkeypatch, "finetune", "--config", out / "config.toml", "--out", again) == 0
    weights = "model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()


def test_a_base_model_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "finetune", "test_vit", "--no-pretrained", "--num-classes", 10, "--img-size", 32,
        "--schedule", "none", "--data", "demo", "--limit", 40, "--epochs", 1, "--batch-size", 20,
        "--workers", 0, "--precision", "fp32", "--out", tmp_path / "out", "--json",
    ]  # fmt: skip
    assert tpcli(monkeypatch, *arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schedule"], document["ratio"], document["distilled"]) == ("none", 1, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--batch-size", 68],
            "--batch-size 68 is larger than the training data of demo, 67 images",
        ),
        (["--schedule", "none"], "--distill learns from the model before pooling"),
        (["--precision", "fp16"], "--precision fp16 is not there on a CPU"),
        (["--opt", "adamww"], "--opt 'adamww' is unknown"),
        (["--sched", "cosin"], "--sched 'cosin' is unknown"),
        (["--num-classes", 7], "--num-classes 10"),
        (["--data", "nowhere"], "data 'nowhere' does not exist"),
        (["--out", Path(__file__) / "out"], "test_command.py is a file"),
        (["--train-split", "test"], "no 'test' split"),
        (["--epochs", 0], "--epochs '0' is out of range"),
    ],
)
def test_bad_input(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    told: str,
) -> None:
    out = tmp_path / "out"
    assert tpcli(monkeypatch, *quick_options(tiny, out), *arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert told in streams.err
    assert streams.err.count("\n") == 1
    assert not out.exists()


def test_a_model_of_ones_own_needs_data(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tpcli(monkeypatch, "finetune", tiny, "--schedule", SCHEDULE) == 2
    assert "add --data" in capsys.readouterr().err
