"""DATA specs: every form, and every way in which data can be wrong."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_transform

from tests.helpers.images import CLASSES, class_folders, picture, tar_of, truncate
from tpcli.config.specs import SPLITS
from tpcli.data import UNREADABLE, Head, ImageData, batches, create, match_classes
from tpcli.errors import UserError

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def everything(images: ImageData) -> tuple[torch.Tensor, list[int]]:
    """All images and targets."""
    pairs = list(batches(images, 7))
    return torch.cat([x for x, _ in pairs]), torch.cat([t for _, t in pairs]).tolist()


def test_class_folders(tmp_path: Path) -> None:
    found = create(str(class_folders(tmp_path / "set")), CONFIG)
    assert found.count == 30
    assert list(found.classes) == list(CLASSES)
    assert found.names[:4] == ["class_0/0.png", "class_0/1.png", "class_0/2.png", "class_1/0.png"]
    _, targets = everything(found)
    assert targets == [c for c in range(10) for _ in range(3)]


def test_preprocessing_is_that_of_the_model(tmp_path: Path) -> None:
    found = create(str(class_folders(tmp_path / "set")), CONFIG)
    images, _ = everything(found)
    assert images.dtype == torch.uint8
    transform = create_transform(**CONFIG, is_training=False)
    expected = transform(picture(101).convert("RGB"))
    torch.testing.assert_close(found.normalize(images[4:5])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("validation", "validation"),
        ("validation", "val"),
        ("validation", "valid"),
        ("validation", "eval"),
        ("validation", "evaluation"),
        ("train", "train"),
        ("train", "training"),
        ("val", "validation"),
        ("valid", "val"),
        ("training", "train"),
        ("test", "test"),
    ],
)
@pytest.mark.parametrize("as_tar", [False, True])
def test_splits_and_their_synonyms(tmp_path: Path, asked: str, there: str, as_tar: bool) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    other = "train" if not asked.startswith("train") else "validation"
    class_folders(folder / other, per_class=1)
    if as_tar:
        tar_of(class_folders(tmp_path / "loose", per_class=2), folder / f"{there}.tar")
    else:
        class_folders(folder / there, per_class=2)
    found = create(str(folder), CONFIG, split=asked)
    assert found.count == 20
    assert found.split == asked
    assert list(found.classes) == list(CLASSES)


def test_a_split_that_is_missing_names_those_there(tmp_path: Path) -> None:
    class_folders(tmp_path / "set" / "train", per_class=1)
    class_folders(tmp_path / "set" / "val", per_class=1)
    with pytest.raises(UserError, match=r"'test'.*train, val"):
        create(str(tmp_path / "set"), CONFIG, split="test")


def test_a_tar_holds_the_same_images(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    loose = create(str(folder), CONFIG)
    packed = create(str(tar_of(folder, tmp_path / "set.tar")), CONFIG)
    assert packed.count == 30
    assert list(packed.classes) == list(CLASSES)
    images, targets = everything(loose)
    packed_images, packed_targets = everything(packed)
    assert torch.equal(packed_images, images)
    assert packed_targets == targets


def test_the_demo_needs_no_files() -> None:
    train, validation = create("demo", CONFIG, split="train"), create("demo", CONFIG)
    assert (train.count, validation.count) == (1000, 797)
    assert list(validation.classes) == [str(i) for i in range(10)]
    seen = {image.tobytes() for image in train.images.images}
    fresh = [image.tobytes() not in seen for image in validation.images.images]
    assert np.mean(fresh) > 0.99, "the splits share no image (but for equal drawings)"
    assert create("demo", CONFIG, split="val").fingerprint == validation.fingerprint
    with pytest.raises(UserError, match=r"'test'.*train, valid"):
        create("demo", CONFIG, split="test")


def test_demo_splits_have_no_row_in_common() -> None:
    from sklearn.datasets import load_digits

    from tpcli.demo import Digits

    total = np.concatenate([Digits("train").targets, Digits("validation").targets])
    assert sorted(total) == sorted(load_digits().target)


def test_unreadable_images_are_marked_and_the_rest_is_untouched(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", suffix="jpg")
    whole, _ = everything(create(str(folder), CONFIG))
    truncate(folder / "class_0" / "1.jpg")
    (folder / "class_3" / "2.jpg").write_bytes(b"this is no image")
    (folder / "class_5" / "0.jpg").write_bytes(b"")
    found = create(str(folder), CONFIG)
    images, targets = everything(found)
    bad = [i for i, t in enumerate(targets) if t == UNREADABLE]
    assert [found.names[i] for i in bad] == ["class_0/1.jpg", "class_3/2.jpg", "class_5/0.jpg"]
    good = [i for i in range(30) if i not in bad]
    assert torch.equal(images[good], whole[good])
    assert [targets[i] for i in good] == [i // 3 for i in good]


def test_the_first_image_may_be_broken(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", suffix="jpg")
    for i in range(3):
        truncate(folder / "class_0" / f"{i}.jpg")
    assert create(str(folder), CONFIG).count == 30


def test_unreadable_images_in_a_tar(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", suffix="jpg")
    truncate(folder / "class_2" / "0.jpg")
    found = create(str(tar_of(folder, tmp_path / "set.tar")), CONFIG)
    _, targets = everything(found)
    assert [found.names[i] for i, t in enumerate(targets) if t == UNREADABLE] == ["class_2/0.jpg"]


def test_no_readable_image(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", per_class=1, suffix="jpg")
    for file in folder.rglob("*.jpg"):
        truncate(file)
    with pytest.raises(UserError, match="10 images"):
        create(str(folder), CONFIG)


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty" / "class_0").mkdir(parents=True)
    (tmp_path / "empty" / "class_0" / "notes.txt").write_text("nothing here")
    with pytest.raises(UserError, match="empty"):
        create(str(tmp_path / "empty"), CONFIG)
    tar = tar_of(tmp_path / "empty", tmp_path / "empty.tar")
    with pytest.raises(UserError, match=r"empty\.tar"):
        create(str(tar), CONFIG)


def test_images_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "flat" / f"{i}.png")
    found = create(str(tmp_path / "flat"), CONFIG)
    assert (found.count, list(found.classes)) == (3, [])
    with pytest.raises(UserError, match="class folders"):
        match_classes(found, Head("mine", 3))


@pytest.mark.parametrize("spec", ["nowhere", "nowhere/set.tar", "imagenet"])
def test_a_path_that_is_not_there(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"'{spec}'"):
        create(spec, CONFIG)


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    file = tmp_path / "set.zip"
    file.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"set\.zip"):
        create(str(file), CONFIG)


def test_a_tar_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "set.tar"
    file.write_bytes(b"this is no archive")
    with pytest.raises(UserError, match=r"set\.tar"):
        create(str(file), CONFIG)


@pytest.mark.parametrize("spec", ["torch/no_such_set", "torch/cifar10"])
def test_a_named_set_that_is_not_there(spec: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"'{spec}', split 'validation'"):
        create(spec, CONFIG, data_dir=str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_class_count_is_held_against_the_head(tmp_path: Path) -> None:
    found = create(str(class_folders(tmp_path / "set", classes=CLASSES[:7])), CONFIG)
    match_classes(found, Head("mine", 7))
    with pytest.raises(UserError, match="num_classes=7"):
        match_classes(found, Head("mine", 10))


@pytest.mark.parametrize("limit", [1, 4, 10, 29])
def test_limit_is_spread_evenly(tmp_path: Path, limit: int) -> None:
    folder = class_folders(tmp_path / "set")
    whole = create(str(folder), CONFIG)
    found = create(str(folder), CONFIG, limit=limit)
    assert found.count == limit
    picked = [i * 30 // limit for i in range(limit)]
    assert list(found.names) == [whole.names[i] for i in picked]
    images, targets = everything(found)
    assert torch.equal(images, everything(whole)[0][picked])
    assert targets == [i // 3 for i in picked]
    if limit == 10:
        assert targets == list(range(10)), "every class once"


def test_limits_at_the_edges(tmp_path: Path) -> None:
    folder = str(class_folders(tmp_path / "set"))
    assert create(folder, CONFIG, limit=30).count == 30
    assert create(folder, CONFIG, limit=1000).count == 30
    with pytest.raises(UserError, match="limit=0"):
        create(folder, CONFIG, limit=0)


def test_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set")
    fingerprint = create(str(folder), CONFIG).fingerprint
    assert create(str(folder), CONFIG).fingerprint == fingerprint
    assert create(str(folder), CONFIG, limit=10).fingerprint != fingerprint
    assert create(str(folder), {**CONFIG, "crop_pct": 1.0}).fingerprint != fingerprint
    file = folder / "class_0" / "0.png"
    picture(999).save(file)
    assert create(str(folder), CONFIG).fingerprint != fingerprint
    demo = create("demo", CONFIG)
    places = {replace(demo, root=tmp_path / place).fingerprint for place in "ab"}
    assert len(places) == 2, "a named set may be kept in several places"
    assert demo.fingerprint == create("demo", CONFIG).fingerprint
    assert demo.fingerprint != create("demo", CONFIG, split="train").fingerprint


def test_fingerprint_tells_labels_in_files_apart(tmp_path: Path) -> None:
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.cls").write_text(str(i))
    before = create(str(tmp_path), CONFIG)
    assert everything(before)[1] == [0, 1]
    (tmp_path / "0.cls").write_text("1")
    after = create(str(tmp_path), CONFIG)
    assert everything(after)[1] == [1, 1]
    assert after.fingerprint != before.fingerprint


def test_content_is_the_same_in_another_place(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "a")
    content = create(str(folder), CONFIG).content
    copied = Path(shutil.copytree(folder, tmp_path / "b"))
    assert create(str(copied), CONFIG).content == content
    (copied / "class_0" / "0.png").rename(copied / "class_1" / "extra.png")
    assert create(str(copied), CONFIG).content != content


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    found = create(str(class_folders(tmp_path / "set")), CONFIG)
    alone = list(batches(found, 8))
    shared = list(batches(found, 8, workers=2))
    assert len(alone) == len(shared) == 4
    for (a, s), (b, t) in zip(alone, shared, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(s, t)


def test_splits_are_those_of_timm() -> None:
    from timm.data import dataset_factory

    assert set(dataset_factory._TRAIN_SYNONYM) <= {*SPLITS["train"], None}
    assert set(dataset_factory._EVAL_SYNONYM) <= {*SPLITS["validation"], None}
