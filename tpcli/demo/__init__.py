"""The built-in demo: handwritten digits, enlarged to 32 x 32, with a fixed split.

README.md says where they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from tpcli.errors import UserError

FILE = Path(__file__).with_name("digits.npz")
TRAIN_SHARE = 1000
IMAGE_SIZE = 32


class Digits(Dataset[Any]):
    """1,797 images of 10 classes: 1,000 for training, 797 that the demo's weights never saw."""

    def __init__(self, split: str, transform: Callable[[Image.Image], Any] | None = None) -> None:
        if split not in ("train", "validation"):
            raise UserError(f"the demo data has no {split!r} split; it has train, validation.")
        with np.load(FILE) as digits:
            strokes, targets = digits["images"], digits["targets"]  # (N, 8, 8) of 0 to 16; (N,)
        order = np.random.default_rng(0).permutation(len(targets))
        chosen = order[:TRAIN_SHARE] if split == "train" else order[TRAIN_SHARE:]
        self.images = (strokes[chosen] * (255 / 16)).astype(np.uint8)
        self.targets = targets[chosen].astype(int)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index]).convert("RGB")
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        return self.transform(image) if self.transform else image, int(self.targets[index])
