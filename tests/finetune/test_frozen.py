"""A linear head on a frozen backbone, and other weights that stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tpcli.config.recipe import MILD, Recipe
from tpcli.data import UNREADABLE, create
from tpcli.errors import UserError
from tpcli.evaluation.answers import collect, features_of
from tpcli.evaluation.choose import Task
from tpcli.evaluation.measurer import Measurer
from tpcli.evaluation.run import RunOptions
from tpcli.finetune import finetune, open_data
from tpcli.finetune.setup import FeatureRows, HeadMeasurer, freeze_backbone
from tpcli.models.load import LoadedModel, load

from .conftest import LIMIT, Run
from .test_command import tpcli

HEAD_ONLY = {"freeze": "backbone", "distill": None, "drop_path": 0.0, "hflip": 0.0}
PLAIN = {**HEAD_ONLY, **MILD, "crop_scale": 1.0}


def folders(place: Path, *, broken: bool = False) -> Path:
    """Two classes of two images; the second of each can't be read where `broken`."""
    pixels = np.random.default_rng(0).integers(255, size=(4, 40, 40, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = place / "ab"[i // 2] / f"{i % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        if broken and i % 2:
            path.write_bytes(path.read_bytes()[:50])
    return place


@pytest.mark.parametrize("changes", [PLAIN, HEAD_ONLY], ids=["cached", "augmented"])
def test_only_the_head_is_trained(
    run: Run, tiny: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    result = run(tmp_path / "run", **changes)
    assert not result.distilled
    before = load_file(tiny / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert {k for k in before if not before[k].equal(after[k])} <= {"head.weight", "head.bias"}
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2 + result.epochs


def test_features_are_computed_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    own = features_of
    for name in ("tpcli.finetune.run", "tpcli.finetune.setup"):
        monkeypatch.setattr(f"{name}.features_of", lambda m, x: seen.append(len(x)) or own(m, x))
    run(tmp_path / "run", epochs=3, **PLAIN)
    assert sum(seen) == 2 * LIMIT


def test_the_head_is_measured_as_the_whole_model_is(tiny: Path) -> None:
    loaded = load(str(tiny))
    data = create("demo", loaded.data_config, limit=50)
    task, options = Task("top1", data), RunOptions(16, "cpu")
    own = HeadMeasurer(loaded.model, task, options).measure(loaded.model)
    whole = Measurer(loaded.model, task, options).measure(loaded.model)
    assert own.each.tolist() == whole.each.tolist()
    assert own.ci95 == whole.ci95


def test_features_of_unreadable_images_are_missing(tiny: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny))
    data = create(str(folders(tmp_path, broken=True)), loaded.data_config, split="train")
    answers = collect(loaded.model, data, features_of, RunOptions(2, "cpu"))
    rows = FeatureRows(answers, data)
    assert [rows[i][1] for i in range(4)] == [0, UNREADABLE, 1, UNREADABLE]
    assert torch.equal(rows[2][0], torch.from_numpy(answers.rows[1]))


def test_a_model_without_a_head_gets_one_for_the_classes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tpcli(
        monkeypatch, "finetune", tiny, "--num-classes", 0, "--data", "demo", "--limit", 200,
        "--schedule", "none", "--freeze", "backbone", "--epochs", 2, "--batch-size", 20,
        "--workers", 0, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measure"] == "top1"
    assert found["held_out"] is True
    assert load(str(tmp_path / "run")).model.num_classes == 10


def test_heads_that_are_not_one_linear_layer_are_refused() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)
    with pytest.raises(UserError, match="freeze=backbone"):
        freeze_backbone(LoadedModel(model, "two heads", {}))


@pytest.mark.parametrize("changes", [{"distill": True}, {"distill_target": "dense"}])
def test_a_frozen_backbone_can_not_learn_from_another(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="freeze"):
        Recipe(freeze="backbone", **changes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_type_are_trained(tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    loaded = load(str(tiny))
    loaded.model.to(dtype)
    recipe = Recipe(epochs=1, batch_size=16, precision="fp32", workers=0, ema_decay=0.0)
    data = open_data("demo", loaded.data_config, recipe, limit=32)
    finetune(loaded, data, recipe, out=tmp_path / "run", device="cpu")
    written = load_file(tmp_path / "run" / "model.safetensors")
    assert {weights.dtype for weights in written.values()} == {torch.float32}


def test_a_model_whose_weights_are_all_frozen_is_refused(tiny: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny))
    loaded.model.requires_grad_(False)
    recipe = Recipe(epochs=1, batch_size=16, workers=0)
    data = open_data("demo", loaded.data_config, recipe, limit=32)
    with pytest.raises(UserError, match="requires_grad"):
        finetune(loaded, data, recipe, out=tmp_path / "run", device="cpu")


def test_channels_last_weights_are_saved(tiny: Path, tmp_path: Path) -> None:
    loaded = load(str(tiny))
    loaded.model.to(memory_format=torch.channels_last)
    recipe = Recipe(epochs=1, batch_size=16, precision="fp32", workers=0)
    data = open_data("demo", loaded.data_config, recipe, limit=32)
    finetune(loaded, data, recipe, out=tmp_path / "run", device="cpu")
    assert load(str(tmp_path / "run")).model.num_classes == 10


def test_a_score_of_training_images_is_marked(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders(tmp_path / "data" / "validation")
    code = tpcli(
        monkeypatch, "finetune", tiny, "--num-classes", 2, "--data", tmp_path / "data",
        "--train-split", "validation", "--epochs", 1, "--batch-size", 4,
        "--workers", 0, "--schedule", "none", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"] is False


def test_dense_features_are_learned_without_labels(run: Run, tmp_path: Path) -> None:
    result = run(tmp_path / "run", distill=None, distill_target="dense", epochs=1)
    assert result.measure == "dense"
    assert result.base_score == pytest.approx(100, abs=1e-3)
    assert result.distilled
    assert result.to_dict()["best_dense"] == result.best_score
