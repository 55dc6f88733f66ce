"""Small image data sets on disk."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = tuple(f"class_{i}" for i in range(10))


def picture(seed: int, size: int = 40) -> Image.Image:
    """A smooth random picture; no two seeds give the same."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def class_folders(
    folder: Path, per_class: int = 3, classes: tuple[str, ...] = CLASSES, suffix: str = "png"
) -> Path:
    """`folder/class_0/0.png` and so on; other pictures in a folder `train` than in others."""
    first = 50_000 if folder.name == "train" else 0
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            picture(first + 100 * c + i).save(folder / name / f"{i}.{suffix}")
    return folder


def tar_of(folder: Path, file: Path) -> Path:
    """All that is in `folder`, as a .tar."""
    with tarfile.open(file, "w") as tar:
        for path in sorted(folder.rglob("*.*")):
            tar.add(path, arcname=str(path.relative_to(folder)))
    return file


def truncate(file: Path) -> Path:
    """Cut off the second half."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    return file
