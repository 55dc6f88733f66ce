"""Pictures of more than 8 bits a channel: what is white is one value for all of a data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from .listing import formats, warn_once

LONGEST = 1000
"""Sides of one to more than this are no picture, and would be resized to gigabytes."""

FLOATS, INTEGERS, SIXTEEN, COLOUR = "floats", "32-bit integers", "16-bit grey", "16-bit colour"
TOPS: Mapping[str, Sequence[float]] = {
    FLOATS: (1, 255, 65535),
    INTEGERS: (255, 1023, 4095, 16383, 65535),
    SIXTEEN: (255, 1023, 4095, 16383, 65535),  # sensors have 10, 12 or 14 bits
    COLOUR: (65535,),  # Pillow reads its upper 8 bits alone
}
"""What may be white in pictures of a kind."""

DARKEST = 16
"""A data set of floats or colours is not so many times darker than its white."""
LOOKED_AT = 32
"""Pictures that the scale is found on, of each suffix."""
EIGHT_BIT = (".jpg", ".jpeg", ".webp", ".gif", ".bmp")

Opener = tuple[str, Callable[[], Any]]
"""The name of a picture, and what opens it."""


@dataclass(frozen=True)
class Scale:
    """What is white, by kind of picture. Of kinds that are not there, 16-bit colours use all bits,
    and so does 16-bit grey above what sensors of fewer bits give."""

    white: Mapping[str, float | None] = field(default_factory=dict)

    def of(self, kind: str) -> float | None:
        """The value that becomes 255, None where it is not known."""
        return self.white.get(kind, 65535 if kind == COLOUR else None)

    def within(self, config: dict[str, Any]) -> dict[str, Any]:
        """A data config with what is white: other pixels are other images."""
        return {**config, "white": dict(self.white)} if self.white else config


def decode(file: BinaryIO, mode: str, scale: Scale | None = None) -> Image.Image:
    """The first picture in a file, in `mode`. EXIF's rotation is not applied, as in timm.

    Raises:
        Exception: it can't be read; of whatever kind Pillow's many decoders raise.
    """
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large images that are read all the same
        with _opened(file) as image:
            return in_mode(image, mode, scale)


def _opened(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=formats())
    except UnidentifiedImageError:
        file.seek(0)
        raise ValueError(_why_unknown(file)) from None
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{image.size} is no size of a picture")
    return image


def _why_unknown(file: BinaryIO) -> str:
    """What a TIFF is that Pillow does not decode; other files are just no picture."""
    head = file.read(8)
    if not head:
        return "it is empty"
    if head[:4] not in (b"II*\0", b"MM\0*"):
        return "it is damaged, or no picture that Pillow can read"
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(tags.next)
        tags.load(file)
        names = {1: "unsigned", 2: "signed", 3: "float"}
        form = names.get(np.ravel(tags.get(339, 1))[0], "other")
        bits = int(np.ravel(tags.get(258, 1))[0])
        return f"Pillow reads no TIFF of {tags.get(277, 1)} bands of {form} {bits}-bit values"
    except Exception:  # of a damaged one
        return "it is a damaged TIFF"


def in_mode(image: Image.Image, mode: str, scale: Scale | None = None) -> Image.Image:
    """The picture in another mode; more than 8 bits are scaled to 8, where Pillow would clip."""
    kind = kind_of(image)
    if kind is not None:
        image = _eight_bits(image, kind, (scale or Scale()).of(kind))
    return image.convert(mode)


def kind_of(image: Image.Image) -> str | None:
    """The kind of a picture of more than 8 bits that was opened and not yet read, else None."""
    if image.mode == "F":
        return FLOATS
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return SIXTEEN
    if image.mode == "I":
        return INTEGERS
    is_colour = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    return COLOUR if is_colour else None


def _eight_bits(image: Image.Image, kind: str, white: float | None) -> Image.Image:
    if kind == COLOUR:
        if white != 65535:
            raise ValueError(f"{kind} is read by its upper 8 bits, which are dark in this data set")
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(high) and low >= 0):  # also of NaN
        raise ValueError(f"values from {low:g} to {high:g} are no picture")
    if white is None and kind == SIXTEEN and high > TOPS[SIXTEEN][-2]:
        white = 65535
    if white is None or high > white:
        known = "" if white is None else f", and {white:g} is white in this data set"
        raise ValueError(f"{kind} go up to {high:g}{known}; say what is white by `pixel_max`")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def found_scale(
    spec: str,
    files: Sequence[Opener],
    pixel_max: float | None = None,
    everything: Callable[[], Sequence[Opener]] | None = None,
) -> Scale:
    """The scale of a data set, from some of its pictures; logged where it has any of many bits.

    Args:
        files: the pictures of a split.
        pixel_max: what is white in all kinds; found where None.
        everything: those of all splits, which have one scale; called where any has many bits.
    """
    highest = _highest(files)
    if highest and everything is not None:
        for kind, high in _highest(everything()).items():
            highest[kind] = max(high, highest.get(kind, 0.0))
    white = {kind: _white(kind, high) for kind, high in highest.items()}
    if pixel_max:
        white = dict.fromkeys(TOPS, pixel_max)
    for kind, high in highest.items():
        if white[kind] is not None and kind != COLOUR:
            warn_once(f"{spec} has {kind} up to {high:g}; {white[kind]:g} is white in all of them")
    return Scale(white)


def _highest(files: Sequence[Opener]) -> dict[str, float]:
    """The highest value of some of the pictures, by kind."""
    highest: dict[str, float] = {}
    for _, opener in _some(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with opener() as file, _opened(file) as image:
                    kind = kind_of(image)
                    if kind is not None:
                        high = float(np.asarray(image).max()) * (257 if kind == COLOUR else 1)
                        highest[kind] = max(high, highest.get(kind, 0.0))
        except Exception:  # it is told where the picture is read to be measured
            continue
    return highest


def _some(files: Sequence[Opener]) -> Iterator[Opener]:
    """Some of each suffix, spread evenly, but for suffixes of 8-bit formats."""
    groups: dict[str, list[Opener]] = {}
    for file in files:
        suffix = os.path.splitext(file[0])[1].lower()
        if suffix not in EIGHT_BIT:
            groups.setdefault(suffix, []).append(file)
    for group in groups.values():
        step = max(1, len(group) // LOOKED_AT)
        yield from group[::step][:LOOKED_AT]


def _white(kind: str, highest: float) -> float | None:
    """The least of a kind's usual values that nothing is above."""
    top = next((top for top in TOPS[kind] if highest <= top), None)
    is_dark = top not in (None, TOPS[kind][0]) or kind == COLOUR
    if top is not None and kind in (FLOATS, COLOUR) and is_dark and highest * DARKEST <= top:
        return None
    return top
