"""The built-in demo: the images that ship with tpcli."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tpcli.demo import FILE, IMAGE_SIZE, Digits

SPLITS = {
    "train": "b134efdedcf040c94305130e68fd2fdf188bcd2709e24db0a3f9cc06f12ba366",
    "validation": "c689e38ffbd508757ee4505e7575a5b7e991b0355a9f36946ffce9b7acd82f3b",
}
"""SHA-256 of images and targets, as the demo's weights were trained and measured on them."""


def test_the_images_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    with np.load(FILE) as ours:
        assert np.array_equal(ours["images"], digits.images)
        assert np.array_equal(ours["targets"], digits.target)
    assert FILE.stat().st_size < 100_000


@pytest.mark.parametrize("split", SPLITS)
def test_the_splits_stay_what_they_were(split: str) -> None:
    digits = Digits(split)
    images = [np.asarray(image) for image, _ in digits]
    assert images[0].shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    content = digits.images.tobytes() + bytes(digits.targets.tolist())
    assert hashlib.sha256(content).hexdigest() == SPLITS[split]


def test_the_source_and_licence_of_the_images_ship_with_them() -> None:
    text = FILE.with_name("README.md").read_text()
    assert "10.24432/C50P49" in text
    assert "CC BY 4.0" in text
