"""Handwritten digits from scikit-learn, enlarged to 32 x 32, with a fixed split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

from tpcli.errors import UserError

TRAIN_SHARE = 1000
IMAGE_SIZE = 32


class Digits(Dataset[Any]):
    """1,797 images of 10 classes: 1,000 for training, 797 that the demo's weights never saw."""

    def __init__(self, split: str, transform: Callable[[Image.Image], Any] | None = None) -> None:
        if split not in ("train", "validation"):
            raise UserError(f"the demo data has no {split!r} split; it has train, validation.")
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        chosen = order[:TRAIN_SHARE] if split == "train" else order[TRAIN_SHARE:]
        self.images = (digits.images[chosen] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
        self.targets = digits.target[chosen].astype(int)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index]).convert("RGB")
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        return self.transform(image) if self.transform else image, int(self.targets[index])
