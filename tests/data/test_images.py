"""Pictures of every depth and kind, as the model takes them; broken ones never end a run."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.images import class_folders, picture
from tpcli.data import create
from tpcli.errors import UserError

from .test_listing import PAIR, unreadable
from .test_open import CONFIG, everything

GREY = np.asarray(picture(3).convert("L"))


def first_image(folder: Path, save: Callable[[Path], object]) -> torch.Tensor:
    (folder / "cat").mkdir(parents=True)
    save(folder / "cat" / "0")
    return everything(create(str(folder), CONFIG))[0][0]


def as_type(values: np.ndarray, suffix: str) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(values).save(path.with_suffix(suffix))


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (GREY.astype(np.uint16) * 257, ".png"),
        (GREY.astype(np.uint16) * 257, ".tif"),
        (GREY.astype(">u2") * 257, ".tif"),
        (GREY.astype(np.int32) * 257, ".tif"),
        (GREY.astype(np.int32), ".tif"),
        (GREY.astype(np.int32) * 257, ".pgm"),
        (GREY.astype(np.float32), ".tif"),
        ((GREY / 255).astype(np.float32), ".tif"),
    ],
)
def test_more_than_eight_bits_are_scaled(tmp_path: Path, values: np.ndarray, suffix: str) -> None:
    expected = first_image(tmp_path / "8", as_type(GREY, ".png"))
    assert torch.equal(first_image(tmp_path / "16", as_type(values, suffix)), expected)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, 1e6], [0.0, np.nan]])
def test_values_that_are_no_picture_are_unreadable(tmp_path: Path, values: list[float]) -> None:
    folder = class_folders(tmp_path / "set", classes=PAIR)
    Image.fromarray(np.full((8, 8), values[1], np.float32)).save(folder / "cat" / "z.tif")
    odd = np.full((8, 8), values[0], np.float32)
    odd[0] = values[1]
    Image.fromarray(odd).save(folder / "cat" / "z.tif")
    assert unreadable(create(str(folder), CONFIG)) == ["cat/z.tif"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_converted(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    image = picture(3).convert(mode)
    found = first_image(tmp_path / "set", lambda path: image.save(path.with_suffix(suffix)))
    assert found.shape == (3, 32, 32)


def bomb(path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 9)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def ribbon(path: Path) -> None:
    Image.new("L", (20000, 1)).save(path)


@pytest.mark.parametrize("write", [bomb, ribbon, lambda path: path.write_bytes(b"\x89PNG")])
@pytest.mark.parametrize("channels", [1, 3])
def test_huge_and_broken_images_are_unreadable(
    tmp_path: Path, write: Callable[[Path], object], channels: int
) -> None:
    folder = class_folders(tmp_path / "set", classes=PAIR)
    write(folder / "cat" / "odd.png")
    config = {**CONFIG, "input_size": (channels, 32, 32)}
    assert unreadable(create(str(folder), config)) == ["cat/odd.png"]


def test_grey_models_get_grey_images(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", classes=PAIR)
    config = {**CONFIG, "input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    found = create(str(folder), config)
    images, _ = everything(found)
    assert images.shape == (6, 1, 32, 32)
    assert found.normalize(images).shape == (6, 1, 32, 32)
    demo, _ = everything(create("demo", config, limit=4))
    assert demo.shape == (4, 1, 32, 32)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    with pytest.raises(UserError, match=f"takes {channels} channels, and images have 3"):
        create("demo", {**CONFIG, "input_size": (channels, 32, 32)})
