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


def sensor(bits: int, seed: int) -> np.ndarray:
    """Grey of so many bits, in 16."""
    return np.asarray(picture(seed).convert("L")).astype(np.uint16) << (bits - 8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sensors_have_one_scale(tmp_path: Path, bits: int, suffix: str) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    images = [sensor(bits, seed) for seed in range(3)]
    images[1] //= 8  # a dark picture stays dark
    images[2][0] = 2**bits - 1
    for i, values in enumerate(images):
        Image.fromarray(values).save(folder / f"{i}{suffix}")
    found, _ = everything(create(str(tmp_path), CONFIG))
    for i, values in enumerate(images):
        eight = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
        Image.fromarray(eight).save(folder / f"{i}{suffix}")
    assert torch.equal(found, everything(create(str(tmp_path), CONFIG))[0])


def test_the_scale_is_told_and_can_be_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(sensor(12, 0)).save(tmp_path / "cat" / "0.png")
    found = create(str(tmp_path), CONFIG)
    assert "4095" in caplog.text
    given = create(str(tmp_path), CONFIG, pixel_max=65535)
    assert everything(given)[0].float().mean() < everything(found)[0].float().mean() / 8
    assert given.fingerprint != found.fingerprint
    same = create(str(tmp_path), CONFIG, pixel_max=4095)
    assert torch.equal(everything(same)[0], everything(found)[0])


def test_a_picture_that_the_scale_was_not_found_on(tmp_path: Path) -> None:
    """Among so many that it is not looked at."""
    (tmp_path / "cat").mkdir()
    for i in range(70):
        picture(i).save(tmp_path / "cat" / f"{i:02d}.png")
    odd = tmp_path / "cat" / "33.png"
    Image.fromarray(sensor(12, 33)).save(odd)
    assert unreadable(create(str(tmp_path), CONFIG)) == ["cat/33.png"]
    given = everything(create(str(tmp_path), CONFIG, pixel_max=4095))[0]
    Image.fromarray(sensor(16, 33)).save(odd)
    found = everything(create(str(tmp_path), CONFIG))[0]
    assert (given.float() - found.float()).abs().max() <= 1


def test_splits_have_one_scale(tmp_path: Path) -> None:
    for split, bits in (("train", 14), ("val", 10)):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(sensor(bits, 0)).save(tmp_path / split / "cat" / "0.png")
    train, val = (create(str(tmp_path), CONFIG, split=name) for name in ("train", "val"))
    assert train.config["white"] == val.config["white"] == {"16-bit grey": 16383}


def floats(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 32 * 32, dtype=np.float32).reshape(32, 32)


@pytest.mark.parametrize(
    "values",
    [
        floats(0, 1.3),  # where 255 would make it black
        floats(0, 12),
        floats(0, 1e6),
        floats(-1000, 3000),
        floats(0, 2**24).astype(np.int32),
        (sensor(8, 0).astype(np.int32) - 300).astype(np.int16),
    ],
)
def test_ranges_that_nobody_knows_are_left_out_with_the_reason(
    tmp_path: Path, values: np.ndarray
) -> None:
    (tmp_path / "cat").mkdir()
    picture(0).save(tmp_path / "cat" / "0.png")
    Image.fromarray(values).save(tmp_path / "cat" / "1.tif")
    data = create(str(tmp_path), CONFIG)
    assert unreadable(data) == ["cat/1.tif"]
    assert f"{values.max():g}" in data.why_unreadable(1)
    if values.min() >= 0:
        data = create(str(tmp_path), CONFIG, pixel_max=float(values.max()))
        assert unreadable(data) == []


def test_kinds_of_tiff_without_a_decoder_are_named(tmp_path: Path) -> None:
    import struct

    (tmp_path / "cat").mkdir()
    picture(0).save(tmp_path / "cat" / "0.png")
    entries = [(256, 4, 2), (257, 4, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 5),
               (273, 4, 200), (278, 4, 2), (279, 4, 20)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 4
    (tmp_path / "cat" / "1.tif").write_bytes(head.ljust(200, b"\0") + b"\1" * 20)
    data = create(str(tmp_path), CONFIG)
    assert unreadable(data) == ["cat/1.tif"]
    assert "5 bands" in data.why_unreadable(1)


def test_a_palette_with_transparency_is_read_as_its_colours(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    image = picture(0).convert("RGB").quantize(64)
    image.save(tmp_path / "cat" / "0.png")
    plain = everything(create(str(tmp_path), CONFIG))[0]
    image.save(tmp_path / "cat" / "0.png", transparency=3)
    assert torch.equal(everything(create(str(tmp_path), CONFIG))[0], plain)


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
    with pytest.raises(UserError, match=f"{channels} channels"):
        create("demo", {**CONFIG, "input_size": (channels, 32, 32)})
