"""Splits under any usual name and at any depth, and never two of them mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.images import class_folders, picture, tar_of
from tpcli.config.specs import splits_among
from tpcli.data import create
from tpcli.data.splits import find_split
from tpcli.errors import UserError

from .test_open import CONFIG

PAIR = ("cat", "dog")


def make(root: Path, *folders: str) -> Path:
    """Class folders in each; the more images the later it is named."""
    for i, folder in enumerate(folders):
        class_folders(root / folder, per_class=i + 1, classes=PAIR)
    return root


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Train", "Val"),
        ("TRAINING", "VALIDATION"),
        ("training_set", "validation_set"),
        ("train2017", "val2017"),
        ("train_images", "Val-Images"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
        ("data/train", "data/val"),
        ("ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"),
        ("images/Training", "images/Valid"),
    ],
)
def test_splits_as_people_have_them(tmp_path: Path, train: str, validation: str) -> None:
    root = make(tmp_path / "set", train, validation)
    assert create(str(root), CONFIG, split="train").count == 2
    assert create(str(root), CONFIG).count == 4
    assert create(str(root), CONFIG, split="val").count == 4
    with pytest.raises(UserError, match="'test'"):
        create(str(root), CONFIG, split="test")


def test_validation_is_not_taken_from_the_test_split(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "training_set", "test_set")
    with pytest.raises(UserError, match=r"'validation'.*training_set, test_set"):
        create(str(root), CONFIG)
    assert create(str(root), CONFIG, split="test").count == 4


def test_folders_without_images_are_no_splits(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "Data/train", "Data/val")
    for split in ("train", "val"):
        (root / "Annotations" / split / "cat").mkdir(parents=True)
        (root / "Annotations" / split / "cat" / "0.xml").write_text("x")
    assert create(str(root), CONFIG).count == 4


def test_two_places_with_splits(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "a/train", "a/val", "b/train", "b/val")
    with pytest.raises(UserError, match=r"(a/ and b|b/ and a)/"):
        create(str(root), CONFIG)


def test_splits_inside_class_folders(tmp_path: Path) -> None:
    for c in PAIR:
        for split in ("train", "val"):
            folder = tmp_path / "set" / c / split
            folder.mkdir(parents=True)
            picture(0).save(folder / "0.png")
    with pytest.raises(UserError, match="several"):
        create(str(tmp_path / "set"), CONFIG)


def test_splits_beside_other_images(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "cat/0", "old/train", "old/val")
    with pytest.raises(UserError, match=r"old/.*cat/"):
        create(str(root), CONFIG)


def test_several_splits_of_one_kind(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train", "val2014", "val2017")
    with pytest.raises(UserError, match="val2014, val2017"):
        create(str(root), CONFIG)
    assert create(str(root), CONFIG, split="val2017").count == 6


def test_a_folder_and_its_archive_are_one_split(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train", "val")
    tar_of(root / "train", root / "val.tar")
    assert find_split(root, "validation") == root / "val"


@pytest.mark.parametrize("name", ["train", "test", "valid", "test_tube", "bullet_train"])
def test_a_class_that_is_called_like_a_split(tmp_path: Path, name: str) -> None:
    root = class_folders(tmp_path / "set", classes=("bus", name, "zebra"))
    for split in ("validation", "train"):
        assert create(str(root), CONFIG, split=split).count == 9


def test_a_split_of_any_name_is_found_by_it(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "holdout", "train")
    assert create(str(root), CONFIG, split="holdout").count == 2
    with pytest.raises(UserError, match="'hold'"):
        create(str(root), CONFIG, split="hold")
    with pytest.raises(UserError, match="'validatoin'"):
        create(str(root / "train"), CONFIG, split="validatoin")


def test_splits_in_one_archive_are_not_mixed(tmp_path: Path) -> None:
    tar = tar_of(make(tmp_path / "set", "train", "val"), tmp_path / "set.tar")
    assert create(str(tar), CONFIG).count == 4
    assert create(str(tar), CONFIG, split="train").count == 2
    with pytest.raises(UserError, match=r"'test'.*train, val"):
        create(str(tar), CONFIG, split="test")
    single = tar_of(make(tmp_path / "one", "imagenette/train"), tmp_path / "one.tar")
    with pytest.raises(UserError, match=r"'validation'.*train"):
        create(str(single), CONFIG)
    odd = tar_of(make(tmp_path / "odd", "a", "b"), tmp_path / "odd.tar")
    with pytest.raises(UserError, match=r"cat/.* a/ and b/"):
        create(str(odd), CONFIG)
    trains = class_folders(tmp_path / "trains", classes=("bus", "train"))
    assert create(str(tar_of(trains, tmp_path / "trains.tar")), CONFIG).count == 6


def test_names_of_splits() -> None:
    names = ["train_val", "trainval", "validation", "retrain", "Test_Data", "training set", "vala"]
    assert splits_among(names) == {
        "validation": "validation",
        "Test_Data": "test",
        "training set": "train",
    }
    assert splits_among(["x_train", "x_val", "y_test"]) == {
        "x_train": "train",
        "x_val": "validation",
    }
