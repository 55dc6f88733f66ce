"""Fashion-MNIST (Xiao et al., 2017) as `tpcli` reads data: `train.tar` and `validation.tar`.

    apt-get install dataset-fashion-mnist
    python benchmarks/fashion_mnist.py --out fashion/

The package brings 60,000 and 10,000 grey images of 28 pixels in IDX files.
"""

from __future__ import annotations

import argparse
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
SPLITS = {"train": "train", "validation": "t10k"}


def read(path: Path, header: int) -> np.ndarray:
    """The bytes of a packed IDX file behind its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def write(source: Path, prefix: str, out: Path) -> None:
    """One split: PNG files in a folder for each class."""
    labels = read(source / f"{prefix}-labels-idx1-ubyte.gz", 8)
    images = read(source / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    with tarfile.open(out, "w") as tar:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "png")
            entry = tarfile.TarInfo(f"{CLASSES[label]}/{i:05}.png")
            entry.size = file.tell()
            file.seek(0)
            tar.addfile(entry, file)


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path("fashion"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, prefix in SPLITS.items():
        write(arguments.source, prefix, arguments.out / f"{split}.tar")


if __name__ == "__main__":
    main()
