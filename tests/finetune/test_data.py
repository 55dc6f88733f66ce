"""The data of a step is a function of the seed and the position, of nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from tpcli.data import Head, ImageData
from tpcli.errors import UserError
from tpcli.finetune import Recipe, TrainingData, match_data, open_data
from tpcli.finetune.data import (
    Batches,
    EpochBatches,
    SeededImages,
    check_data,
    label_names,
    seeded,
    shard_positions,
    training_transform,
)
from tpcli.finetune.objective import Objective

CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
}


@pytest.mark.parametrize(("batch_size", "shards"), [(16, 1), (15, 1), (16, 2), (24, 4), (48, 8)])
def test_shards_cut_a_batch_into_equal_parts(batch_size: int, shards: int) -> None:
    parts = [shard_positions(batch_size, shards, s) for s in range(shards)]
    assert sorted(np.concatenate(parts)) == list(range(batch_size))
    assert {len(part) for part in parts} == {batch_size // shards}


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_shard_is_closed_under_reversing_the_batch(shards: int) -> None:
    for shard in range(shards):
        part = shard_positions(16, shards, shard)
        assert list(15 - part) == list(part[::-1])


def test_mixing_shards_is_mixing_the_batch() -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(16, 3, 8, 8), torch.randint(10, (16,))
    for step in range(4):  # mixup and cutmix
        whole = Objective(Recipe(), 10, None, torch.no_grad).mix(images.clone(), targets, step)
        for shard in range(4):
            part = torch.from_numpy(shard_positions(16, 4, shard))
            objective = Objective(Recipe(), 10, None, torch.no_grad)
            mixed = objective.mix(images[part].clone(), targets[part], step)
            torch.testing.assert_close(mixed[0], whole[0][part], rtol=0, atol=0)
            torch.testing.assert_close(mixed[1], whole[1][part], rtol=0, atol=0)


def test_every_epoch_is_another_permutation() -> None:
    batches = EpochBatches(33, 8, shards=1, own=[0], seed=0)
    seen = []
    for epoch in range(2):
        batches.epoch = epoch
        seen.append([key for batch in batches for key in batch])
        assert len(seen[-1]) == 32
        assert len({index for _, index in seen[-1]}) == 32
        assert {e for e, _ in seen[-1]} == {epoch}
    assert [i for _, i in seen[0]] != [i for _, i in seen[1]]


def test_batches_from_a_step_on_are_the_rest_of_the_epoch() -> None:
    batches = EpochBatches(64, 8, shards=4, own=[1, 3], seed=5)
    batches.epoch = 3
    whole = list(batches)
    batches.first_step = 5
    assert list(batches) == whole[10:]
    assert len(batches) == len(whole[10:])


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_accumulation_see_the_images_of_one_process(workers: int) -> None:
    recipe = Recipe(batch_size=16, workers=workers)
    source = open_data("demo", CONFIG, recipe, limit=40)
    (whole,) = (dict(enumerate(Batches(source, recipe, 1, 0, False).epoch(2, 0))),)
    cut = replace(recipe, grad_accumulation=2, workers=0)
    for process in range(2):
        for i, (images, targets) in enumerate(Batches(source, cut, 2, process, False).epoch(2, 0)):
            step, part = divmod(i, 2)
            own = torch.from_numpy(shard_positions(16, 4, part * 2 + process))
            torch.testing.assert_close(images, whole[step][0][own], rtol=0, atol=0)
            assert targets.tolist() == whole[step][1][own].tolist()


def test_looking_an_image_up_leaves_random_states_alone() -> None:
    transform = training_transform(CONFIG, Recipe())
    from tpcli.demo import Digits

    images = SeededImages(Digits("train", transform), 1000, seed=1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = images[3, 7][0]
    images[3, 8]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.equal(images[3, 7][0], first)
    assert not torch.equal(images[4, 7][0], first)


def test_seeded_is_a_function_of_the_key() -> None:
    def draw(*key: int) -> tuple[float, float, float]:
        with seeded(*key):
            return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert draw(1, 2, 3) != draw(1, 3, 2)


def test_an_image_that_cant_be_read_gives_way_to_the_next() -> None:
    pairs = [(torch.zeros(1), -100), (torch.ones(1), 4)]
    images = SeededImages(pairs, 2, seed=0)  # type: ignore[arg-type]
    assert images[0, 0][1] == 4
    assert images[0, 1][1] == 4


def _folder(root: Path, classes: list[str], count: int = 3) -> None:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, len(root.name), 9)).save(root / name / f"{i}.png")


def test_folders_of_splits(tmp_path: Path) -> None:
    _folder(tmp_path / "train", ["a", "b"])
    _folder(tmp_path / "val", ["a", "b"], 2)
    source = open_data(str(tmp_path), CONFIG, Recipe())
    assert (source.train.count, source.validation.count) == (6, 4)


def test_no_training_split(tmp_path: Path) -> None:
    _folder(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match="no 'train' split: the same images"):
        open_data(str(tmp_path), CONFIG, Recipe())
    only = tmp_path / "only"
    _folder(only / "validation", ["a", "b"])
    with pytest.raises(UserError, match=r"no 'train' split; it has validation"):
        open_data(str(only), CONFIG, Recipe())


def test_splits_with_other_classes(tmp_path: Path) -> None:
    _folder(tmp_path / "train", ["a", "b"])
    _folder(tmp_path / "val", ["a", "c"])
    with pytest.raises(UserError, match="'b' is in one of them only"):
        open_data(str(tmp_path), CONFIG, Recipe())


def test_an_empty_class_folder_is_there(tmp_path: Path) -> None:
    _folder(tmp_path / "train", ["a", "b", "c"])
    _folder(tmp_path / "val", ["a", "c"])
    (tmp_path / "val" / "b").mkdir()
    source = match_data(open_data(str(tmp_path), CONFIG, Recipe()), Head("m", 3))
    assert [target for _, target in source.validation.images] == [0, 0, 0, 2, 2, 2]
    (tmp_path / "val" / "b").rmdir()
    with pytest.raises(UserError, match="'b' is in one of them only"):
        open_data(str(tmp_path), CONFIG, Recipe())


def test_classes_are_matched_by_name_and_named_again(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _folder(tmp_path / split, ["a", "b"])
    opened = open_data(str(tmp_path), CONFIG, Recipe())
    head = Head("m", 3, ("b", "x", "a"))
    source = match_data(opened, head)
    assert [target for _, target in source.train.images] == [2, 2, 2, 0, 0, 0]
    assert label_names(source.train, head) == head.names
    with pytest.raises(UserError, match=r"a/ in .* is no class of m"):
        match_data(opened, Head("m", 2, ("b", "x")))
    mapped = open_data(str(tmp_path), CONFIG, Recipe(), class_map={"a": 1, "b": 0})
    source = match_data(mapped, Head("m", 2, ("cat", "dog")))
    assert [target for _, target in source.validation.images] == [1, 1, 1, 0, 0, 0]
    assert label_names(source.train, Head("m", 2, ("cat", "dog"))) == ("b", "a")
    assert label_names(opened.train, Head("m", 2)) == ()


@pytest.mark.parametrize("validation", ["images", "images/part"])
def test_validation_on_training_images_is_refused(tmp_path: Path, validation: str) -> None:
    _folder(tmp_path / "images" / "part", ["a", "b"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "images")
    (tmp_path / "set" / "val").symlink_to(tmp_path / validation)
    with pytest.raises(UserError, match="the same images would be trained on"):
        open_data(str(tmp_path / "set"), CONFIG, Recipe())


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_images_are_named(tmp_path: Path, workers: int) -> None:
    for split in ("train", "val"):
        _folder(tmp_path / split, ["a", "b"], 4)
    for name in ("a/1.png", "b/3.png"):
        (tmp_path / "train" / name).write_bytes(b"")
    recipe = Recipe(batch_size=4, workers=workers)
    batches = Batches(open_data(str(tmp_path), CONFIG, recipe), recipe, 1, 0, False)
    assert batches.unreadable == []
    seen = list(batches.epoch(0, 0))
    assert [len(images) for images, _ in seen] == [4, 4]
    assert batches.unreadable == ["a/1.png", "b/3.png"]


def test_grey_images_under_every_augmentation() -> None:
    config = {**CONFIG, "input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    recipe = Recipe(batch_size=16, aa="rand-m9-mstd0.5-inc1", erasing=0.5, workers=0)
    source = open_data("demo", config, recipe, limit=32)
    for images, _ in Batches(source, recipe, 1, 0, False).epoch(0, 0):
        assert images.shape == (16, 1, 32, 32)


def test_one_class_only(tmp_path: Path) -> None:
    _folder(tmp_path / "train", ["a"])
    _folder(tmp_path / "val", ["a"])
    source = open_data(str(tmp_path), CONFIG, Recipe(batch_size=2))
    with pytest.raises(UserError, match=r"one class only \(a\)"):
        check_data(source, Recipe(batch_size=2), 1)


def test_batch_larger_than_the_data() -> None:
    source = open_data("demo", CONFIG, Recipe(), limit=100)
    with pytest.raises(UserError, match=r"`batch_size=128` .* 100 images; use at most 100"):
        check_data(source, Recipe(), 1)


@pytest.mark.parametrize(
    ("batch_size", "processes", "parts", "multiple"), [(15, 1, 1, 2), (36, 2, 4, 16)]
)
def test_batch_that_cant_be_cut(batch_size: int, processes: int, parts: int, multiple: int) -> None:
    source = open_data("demo", CONFIG, Recipe())
    recipe = Recipe(batch_size=batch_size, grad_accumulation=parts)
    with pytest.raises(UserError, match=f"use a multiple of {multiple}"):
        check_data(source, recipe, processes)


def test_unknown_augmentation() -> None:
    with pytest.raises(UserError, match="aa 'nope'"):
        training_transform(CONFIG, Recipe(aa="nope"))


def test_the_demo_is_not_mirrored_unless_asked() -> None:
    names = [str(training_transform(CONFIG, Recipe(), is_demo=d)) for d in (True, False)]
    assert ["RandomHorizontalFlip" in name for name in names] == [False, True]
    asked = training_transform(CONFIG, Recipe(hflip=0.5), is_demo=True)
    assert "RandomHorizontalFlip" in str(asked)


def test_a_stream_without_a_length_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(())

    stream = ImageData("wds/x", "train", Stream(), (), (), CONFIG)
    still = ImageData("x", "validation", TensorDataset(torch.zeros(2)), (), (), CONFIG)
    with pytest.raises(UserError, match="how many images"):
        check_data(TrainingData(stream, still), Recipe(), 1)


def test_a_stream_can_not_be_limited() -> None:
    with pytest.raises(UserError, match="`limit=5` has no effect on wds/x"):
        open_data("wds/x", CONFIG, Recipe(), limit=5)
