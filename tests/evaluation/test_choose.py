"""Which measure is taken, and what is said where one can't be; then models, measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.images import class_folders, tar_of
from tests.helpers.models import tiny_vit
from tpcli import pool
from tpcli.data import create, overlap
from tpcli.errors import UserError
from tpcli.evaluation.choose import MeasuredModel, Task, choose
from tpcli.evaluation.measurer import Measurer
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import data_config
from tpcli.surgery import unpooled

ANIMALS = ("cat", "dog", "owl")
RUN = RunOptions(batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    class_folders(folder / "train", per_class=4, classes=ANIMALS)
    class_folders(folder / "validation", per_class=3, classes=ANIMALS[1:])
    return folder


def candidate(model: nn.Module, folder: Path, train: str = "train") -> MeasuredModel:
    config = data_config(model)
    opened = partial(create, str(folder), config)
    return MeasuredModel(model, "mine", opened(), lambda: opened(split=train))


HEADLESS = tiny_vit(num_classes=0)
TEN, THREE = tiny_vit(), tiny_vit(num_classes=2)


def measure_of(*models: nn.Module, folder: Path) -> str:
    return choose(None, [candidate(model, folder) for model in models])[0].measure


def test_the_first_that_all_models_and_data_allow(labelled: Path, photos: Path) -> None:
    assert measure_of(THREE, folder=labelled) == "top1"
    assert measure_of(TEN, folder=labelled) == "knn"
    assert measure_of(HEADLESS, folder=labelled) == "knn"
    assert measure_of(THREE, HEADLESS, folder=labelled) == "knn"
    assert measure_of(THREE, folder=labelled / "validation") == "top1"
    assert measure_of(TEN, folder=labelled / "validation") == "agreement"
    assert measure_of(HEADLESS, folder=labelled / "validation") == "similarity"
    assert measure_of(TEN, folder=photos) == "agreement"
    assert measure_of(TEN, HEADLESS, folder=photos) == "similarity"


def test_why_the_first_is_not_taken(labelled: Path, photos: Path) -> None:
    (task,) = choose(None, [candidate(TEN, photos)])
    assert "class folders" in task.passed_over
    (task,) = choose(None, [candidate(THREE, labelled)])
    assert task.passed_over == ""


def test_classes_that_agree_with_a_head_in_part_are_a_mistake(labelled: Path) -> None:
    model = tiny_vit(num_classes=3)
    model.pretrained_cfg = {"label_names": ["dog", "fox", "wolf"]}
    with pytest.raises(UserError, match="owl/"):
        choose(None, [candidate(model, labelled)])


@pytest.mark.parametrize(
    ("measure", "model", "data", "words"),
    [
        ("top2", TEN, "flat", "'top2'"),
        ("top1", TEN, "flat", "measure=agreement"),
        ("top1", HEADLESS, "labelled", "mine.*measure=knn"),
        ("knn", HEADLESS, "flat", "measure=similarity"),
        ("knn", HEADLESS, "labelled/validation", "'validation'"),
        ("agreement", HEADLESS, "flat", "mine"),
        ("agreement", tiny_vit(num_classes=1), "flat", "mine"),
        ("similarity", tiny_vit(num_classes=0, global_pool=""), "flat", "global_pool"),
    ],
)
def test_what_a_measure_needs(
    measure: str, model: nn.Module, data: str, words: str, labelled: Path, photos: Path
) -> None:
    folder = photos if data == "flat" else labelled.parent / data.replace("labelled", labelled.name)
    with pytest.raises(UserError, match=words.replace("'validation'", "'train'")):
        choose(measure, [candidate(model, folder)])


def test_knn_wants_a_training_split_with_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "one/train", per_class=2, classes=("cat",))
    class_folders(tmp_path / "one/val", per_class=2, classes=("cat",))
    with pytest.raises(UserError, match="train"):
        choose("knn", [candidate(HEADLESS, tmp_path / "one")])
    with pytest.raises(UserError, match="'test'"):
        choose("knn", [candidate(HEADLESS, tmp_path / "one", train="test")])
    class_folders(tmp_path / "two/train", per_class=1, classes=("cat", "dog"))
    class_folders(tmp_path / "two/val", per_class=1, classes=("cat", "fox"))
    with pytest.raises(UserError, match="'fox'"):
        choose("knn", [candidate(HEADLESS, tmp_path / "two")])


def test_splits_that_lie_in_one_place(labelled: Path, tmp_path: Path) -> None:
    """In folders of their own in one .tar, or told apart by whoever opens them."""
    both = tar_of(labelled, tmp_path / "both.tar")
    (task,) = choose("knn", [candidate(HEADLESS, both)])
    assert task.bank is not None
    assert (task.bank.count, task.data.count) == (12, 6)
    assert not overlap(task.bank, task.data)
    assert overlap(task.data, task.data)


def test_targets_are_those_of_the_bank(labelled: Path) -> None:
    (task,) = choose("knn", [candidate(HEADLESS, labelled)])
    assert [task.data.images[i][1] for i in range(6)] == [1, 1, 1, 2, 2, 2]


def test_the_unpooled_model_agrees_with_itself_and_runs_once(photos: Path) -> None:
    model = tiny_vit(depth=2)
    calls: list[int] = []
    model.patch_embed.register_forward_hook(lambda module, images, out: calls.append(len(out)))
    data = candidate(model, photos).data
    for measure in ("agreement", "similarity"):
        calls.clear()
        measurer = Measurer(model, Task(measure, data), RUN)
        assert measurer.measure(model).score == 100
        assert sum(calls) == 6
        with unpooled(model):
            pool(model, "tokens:9,3")
            found = measurer.measure(model)
            assert found.each.mean() < 1 or found.more["kl"] > 0
        assert sum(calls) == 12
        assert np.isfinite(measurer.measure(model).images_per_second)


@pytest.mark.parametrize("head", [0, 10])
def test_features_are_what_goes_into_the_head(photos: Path, head: int) -> None:
    model = tiny_vit(depth=2, num_classes=head)
    data = candidate(model, photos).data
    measurer = Measurer(model, Task("similarity", data), RUN)
    measurer.measure(model)
    images = torch.stack([torch.as_tensor(data.images[i][0]) for i in range(6)])
    with torch.no_grad():
        expected = model.forward_head(
            model.forward_features(data.normalize(images)), pre_logits=True
        )
    rows = measurer._kept[data.split].rows
    assert rows == pytest.approx(expected.numpy(), abs=1e-4)
    assert rows.filename is None
    assert isinstance(rows, np.memmap)


def test_banks_of_both_models(labelled: Path) -> None:
    model = tiny_vit(depth=2, num_classes=0)
    found = {}
    for bank in ("pooled", "unpooled"):
        (task,) = choose("knn", [candidate(model, labelled)], bank)
        with unpooled(model):
            pool(model, "tokens:2,1")
            found[bank] = Measurer(model, task, RUN).measure(model)
    assert all(scores.count == 6 for scores in found.values())
