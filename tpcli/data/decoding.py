"""From the bytes of a file to a picture with as many channels as the model takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from tpcli.errors import UserError

from .files import formats

MODES = {1: "L", 3: "RGB"}
LONGEST = 1000
"""Sides of one to more than this are no picture, and would be resized to gigabytes."""


def mode_for(channels: int) -> str:
    """Pillow's mode of pictures with so many channels.

    Raises:
        UserError: there is none.
    """
    if channels not in MODES:
        raise UserError(
            f"the model takes {channels} channels, and images have 3 (RGB) or 1 (grey); "
            "use a model with in_chans=3 or in_chans=1."
        )
    return MODES[channels]


@dataclass(frozen=True)
class Prepared:
    """A transform behind the conversion to a mode."""

    mode: str
    transform: Callable[[Image.Image], Any]

    def __call__(self, image: Image.Image) -> Any:
        return self.transform(in_mode(image, self.mode))


def decode(file: BinaryIO, mode: str) -> Image.Image:
    """The first picture in a file, in `mode`. EXIF's rotation is not applied, as in timm.

    Raises:
        Exception: it can't be read; of whatever kind Pillow's many decoders raise.
    """
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large images that are read all the same
        with Image.open(file, formats=formats()) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(f"{image.size} is no size of a picture")
            return in_mode(image, mode)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode; more than 8 bits are scaled to 8, where Pillow would clip."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, of 32 that hold 8 or 16, or of floats in [0, 1], [0, 255] or [0, 65535]."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    is_sixteen = image.mode == "I" and image.format in ("PNG", "PPM")
    if is_sixteen or image.mode.startswith("I;16"):
        scale = 1 / 257
    elif image.mode == "F" and high <= 1:
        scale = 255.0
    else:
        scale = 1.0 if high <= 255 else 1 / 257
    if not (low >= 0 and high * scale <= 255):  # also of NaN
        raise ValueError(f"values from {low} to {high} are no picture")
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))
