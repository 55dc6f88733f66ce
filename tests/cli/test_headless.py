"""Every command on a model without a head, and heads that are taken off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.cli import Run
from tests.helpers.images import class_folders, picture
from tests.helpers.models import images, tiny_vit
from tpcli import load, save
from tpcli.evaluation.answers import features_of


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    save(tiny_vit(depth=2), folder)
    return folder


@pytest.mark.parametrize("from_file", [False, True])
def test_num_classes_0_takes_the_head_off(classifier: Path, from_file: bool) -> None:
    spec = str(classifier)
    file = classifier / "model.safetensors"
    loaded = load(spec, num_classes=0, checkpoint=file if from_file else None).model
    whole, x = load(spec).model, images()
    with torch.no_grad():
        features = loaded(x)
        torch.testing.assert_close(features, features_of(whole, x))
        torch.testing.assert_close(whole.head(features), whole(x))
    assert loaded.num_classes == 0
    assert "head.weight" in load_file(file)


@pytest.mark.parametrize(
    "line",
    [
        ("apply", "--schedule", "r:10"),
        ("bench", "--schedule", "r:10", "--batch-size", 1, "--seconds", 0),
        ("flops", "--schedule", "r:10"),
        ("schedule", "--data", "demo", "--images", 8, "--trials", 1, "--budget", 0.5),
    ],
)
def test_commands_need_no_head(run: Run, headless: Path, line: tuple[object, ...]) -> None:
    found = run(line[0], headless, *line[1:], "--json")
    assert found.code == 0, found
    document = json.loads(found.out)
    if line[0] == "schedule":
        assert document["made_by"]["by"] == "similarity"


def test_eval_by_neighbours_and_by_features(run: Run, headless: Path, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        class_folders(tmp_path / "set" / split, per_class=count, classes=("cat", "dog", "owl"))
    line = ("eval", headless, "--data", tmp_path / "set", "--schedule", "r:10", "--workers", 0)
    found = run(*line, "--knn-images", 9, "--bank", "unpooled", "--json")
    document = json.loads(found.out)
    assert document["measure"] == "knn"
    assert document["bank"] == {"of": "unpooled", "split": "train", "count": 9}
    assert document["score_lo"] <= document["score"] <= document["score_hi"]
    assert not {"top1", "top5", "loss", "top1_ci95"} & set(document)
    found = run(*line, "--measure", "similarity", "--json")
    document = json.loads(found.out)
    assert (document["measure"], document["count"]) == ("similarity", 6)
    assert 0 < document["score"] < 100
    assert found.err == ""  # it was asked for
    printed = run(*line, "--measure", "similarity").out
    assert "similarity  " in printed
    assert "neighbours  " in printed


def test_a_classifier_keeps_its_keys(run: Run, classifier: Path) -> None:
    found = json.loads(run("eval", classifier, "--data", "demo", "--limit", 9, "--json").out)
    assert (found["measure"], found["score"]) == ("top1", found["top1"])
    assert [found["score_lo"], found["score_hi"]] == found["top1_ci95"]
    assert {"top5", "loss"} <= set(found)


@pytest.mark.long  # that of a classifier writes one by default
def test_an_exported_model_answers_with_features(run: Run, headless: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    found = run("export", headless, "--schedule", "r:10", "--out", tmp_path / "m.onnx", "--json")
    assert json.loads(found.out)["output"] == "features"
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["features"]


QUICK = ("--epochs", 1, "--batch-size", 8, "--workers", 0, "--precision", "fp32", "--lr", "1e-3")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 16), ("validation", 6)):
        (folder / split).mkdir()
        for i in range(count):
            picture(100 * count + i).save(folder / split / f"{i}.png")
    return folder


def test_labels_mean_nothing_to_a_run_without_a_head(
    run: Run, headless: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        class_folders(tmp_path / "set" / split, per_class=8, classes=("cat",))
    line = ("finetune", headless, "--data", tmp_path / "set", "--schedule", "tokens:20,9", *QUICK)
    found = run(*line, "--json")
    assert (found.code, json.loads(found.out)["measure"]) == (0, "similarity"), found


@pytest.mark.long
@pytest.mark.parametrize(("classes", "measure"), [(0, "similarity"), (10, "agreement")])
def test_a_run_without_labels(
    run: Run, photos: Path, tmp_path: Path, classes: int, measure: str
) -> None:
    save(tiny_vit(depth=2, num_classes=classes), tmp_path / "model")
    line = ("finetune", tmp_path / "model", "--data", photos, "--schedule", "tokens:20,9", *QUICK)
    found = run(*line, "--out", tmp_path / "out", "--json")
    assert found.code == 0, found
    document = json.loads(found.out)
    assert (document["measure"], document[f"base_{measure}"]) == (measure, 100.0)
    assert document["best_score"] == document[f"best_{measure}"]
    assert document["start_score"] <= document["best_score"]
    assert document["distilled"]
    header = (tmp_path / "out/metrics.csv").read_text().splitlines()[0].split(",")
    assert {measure, f"average_{measure}"} <= set(header)
    again = run(*line, "--out", tmp_path / "out", "--json")
    assert json.loads(again.out) == document  # it is complete
    found = run("eval", tmp_path / "out", "--data", photos, "--workers", 0, "--json")
    assert json.loads(found.out)["measure"] == measure


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--schedule", "none"), "no head and nothing is pooled, so there is nothing to learn"),
        (("--no-distill",), "no head, so it can only learn from the model before pooling; leave"),
    ],
)
def test_nothing_to_learn_from(
    run: Run, photos: Path, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    save(tiny_vit(depth=2, num_classes=0), tmp_path / "model")
    found = run("finetune", tmp_path / "model", "--data", photos, *QUICK, *more)
    assert (found.code, words in found.err) == (2, True), found
