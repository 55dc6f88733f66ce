"""Images are found again in other data, whatever their folders, links and archives are called."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.optimize.test_optimize import OPTIONS
from tpcli.data import ImageData, chosen_on, create, overlap, subset, warnings
from tpcli.data.overlap import TRAINED
from tpcli.errors import UserError
from tpcli.models.load import load
from tpcli.optimize.options import Targets
from tpcli.optimize.run import optimize

CONFIG: dict[str, Any] = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def photographs(folder: Path, seed: int, each: int = 20) -> Path:
    """Class folders of noise."""
    random = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="images")
    return archive


def renamed(folder: Path, copy: Path) -> Path:
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        target = copy / path.parent.name / f"photo-{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return copy


def linked(folder: Path, link: Path) -> Path:
    link.symlink_to(folder, target_is_directory=True)
    return link


SAME: dict[str, Callable[[Path, Path], Path]] = {
    "itself": lambda folder, other: folder,
    "a link": linked,
    "a copy": lambda folder, other: Path(shutil.copytree(folder, other)),
    "a copy under other names": renamed,
    "a tar": lambda folder, other: packed(folder, other.with_suffix(".tar")),
}


def opened(path: Path, split: str = "validation") -> ImageData:
    return create(str(path), CONFIG, split=split)


@pytest.mark.parametrize("how", SAME)
def test_the_same_images_are_found(tmp_path: Path, how: str) -> None:
    folder = photographs(tmp_path / "one", 0)
    data = opened(folder)
    other = opened(SAME[how](folder, tmp_path / "two"), "train")
    assert overlap(data, other)
    assert overlap(other, data)
    halves = subset(data, range(0, 40, 2)), subset(other, range(1, 40, 2))
    assert not overlap(*halves)
    assert overlap(subset(data, range(10)), other)


def test_one_tar_under_two_names(tmp_path: Path) -> None:
    first = packed(photographs(tmp_path / "one", 0), tmp_path / "a.tar")
    second = Path(shutil.copy(first, tmp_path / "b.tar"))
    assert overlap(opened(first), opened(second))


def test_other_images_and_a_few_duplicates_are_no_overlap(tmp_path: Path) -> None:
    one, two = photographs(tmp_path / "one", 0, 50), photographs(tmp_path / "two", 1, 50)
    shutil.copy(one / "cat" / "0.png", two / "cat" / "more.png")
    assert not overlap(opened(one), opened(two))


def test_data_sets_without_files_are_known_by_split_and_position() -> None:
    train = create("demo", CONFIG, split="train", limit=10)
    assert overlap(train, create("demo", CONFIG, split="training"))
    assert not overlap(train, create("demo", CONFIG))
    other = subset(train, range(5))
    assert overlap(other, replace(train, split="another name"))
    assert not overlap(other, subset(train, range(5, 10)))


def test_a_score_on_what_was_chosen_on_has_a_warning(tmp_path: Path) -> None:
    data, other = (opened(photographs(tmp_path / str(seed), seed)) for seed in (0, 1))
    half = chosen_on(subset(data, range(20)))
    (told,) = warnings([half, half], data)
    assert "50%" in told
    assert "100%" in warnings([half], subset(data, range(20)))[0]
    assert "trained on about 50%" in warnings([{"how": TRAINED, **half}], data)[0]
    assert warnings([half], other) == []
    for unknown in (None, {}, {"sample": 3}, {"sample": [None], "count": "a"}, "text"):
        assert warnings([unknown], data) == []


def test_optimize_never_checks_on_the_images_that_it_chose_on(tmp_path: Path) -> None:
    """A folder without splits is its own training split; half of it is too few for the targets."""
    folder = photographs(tmp_path / "all", 0, 12)
    demo = load("demo")

    def opened(split: str) -> ImageData:
        return create(str(folder), demo.data_config, split=split)

    options = replace(OPTIONS, measure="agreement")
    with pytest.raises(UserError, match="24"):
        optimize(
            demo, opened("validation"), Targets(budget=0.5), options,
            open_bank=lambda: opened("train"),
        )  # fmt: skip
