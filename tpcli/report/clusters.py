"""Pictures of clusters: a row an image, and beside it what is left of it after some blocks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import IterableDataset

from tpcli.analysis.clusters import BlockClusters, Guess, Seen, look, pooling_blocks, read_images
from tpcli.config.choices import CLUSTER_STYLES, check_choice
from tpcli.config.options import options_from_dict
from tpcli.data import UNREADABLE, ImageData
from tpcli.errors import UserError
from tpcli.models.load import data_config
from tpcli.pareto import ModelSource, Point, SweepResult
from tpcli.pareto.points import FINETUNED
from tpcli.schedules.resolve import pool
from tpcli.surgery import find, unpooled
from tpcli.system.text import visible

from .figure import PLAIN, new_figure, small_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Picture = npt.NDArray[np.uint8]

MOST_ROWS = 100
SIDE = 448
"""Pixels at least of the longer side of what is drawn."""
CELL = 1.75
"""Inches of the longer side of a picture."""
TEXT, GAP, TITLE, HEAD, NOTE = 1.75, 0.07, 0.2, 0.48, 0.55
"""Inches: text at the left, between pictures, above each, at the top, below the last."""
LIGHT, DARK = np.array([255, 255, 255], np.uint8), np.array([70, 70, 70], np.uint8)
GONE = np.array([235, 235, 235], np.uint8)
"""What is there of a dropped patch."""
COLOURS = "viridis"
MEANINGS = {
    "mean": "each region is a token in the mean colour of its patches",
    "outline": "each outlined region is a token, or a part of one",
    "size": "each region is a token, or a part of one",
    "random": "patches of one colour are one token",
}
"""What a reader sees, by style."""


def clusters_figure(seen: Sequence[Seen], title: str = "", style: str = "mean") -> Figure:
    """A row for each image (and method), its clusters after each block that is to be shown.

    style: "mean" fills a cluster with its mean colour, "outline" leaves the picture as it is,
    "size" says how many patches a token stands for, "random" tells clusters apart.

    Raises:
        UserError: the style is unknown, or there are more than 100 rows.
    """
    check_choice("style", style, CLUSTER_STYLES)
    if len(seen) > MOST_ROWS:
        raise UserError(f"{len(seen)} rows are too many for a page; show {MOST_ROWS} at most.")
    largest = max(int(_sizes(block).max()) for one in seen for block in one.blocks)
    columns = 1 + max(len(one.blocks) for one in seen)
    height, width = seen[0].picture.shape[:2]
    cell_h, cell_w = (CELL * side / max(height, width) for side in (height, width))
    note = NOTE if style == "size" else 0.05
    full_w = TEXT + columns * (cell_w + GAP)
    full_h = HEAD + len(seen) * (cell_h + TITLE + GAP) + note
    figure = new_figure(full_w, full_h, layout=None)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, full_w), ylim=(0, full_h), autoscale_on=False)
    page.set_axis_off()
    write: Any = partial(page.text, va="top", **PLAIN)
    write(0.08, full_h - 0.1, visible(title), fontsize=10, weight="bold")
    any_gone = any(block.dropped.any() for one in seen for block in one.blocks)
    meaning = MEANINGS[style] + (", pale: dropped" if any_gone else "")
    write(0.08, full_h - 0.29, meaning, fontsize=8, color="#555555")
    several = len({one.method for one in seen}) > 1
    names = {one.name for one in seen}
    is_short = len({Path(name).name for name in names}) == len(names)
    for row, one in enumerate(seen):
        top = full_h - HEAD - row * (cell_h + TITLE + GAP) - TITLE
        write(0.08, top, _words(one, several, is_short), fontsize=7.5, linespacing=1.35)
        pictures = [(f"{one.blocks[0].source.size} patches", _upscaled(one.picture))]
        for block in one.blocks:
            words = f"block {block.index}: {block.tokens} tokens"
            pictures.append((words, paint(one.picture, block, style, largest)))
        for column, (words, picture) in enumerate(pictures):
            left = TEXT + column * (cell_w + GAP)
            extent = (left, left + cell_w, top - cell_h, top)
            page.imshow(picture, extent=extent, aspect="auto")
            write(left + cell_w / 2, top + 0.15, words, fontsize=7.5, ha="center")
    if style == "size":
        _explain_sizes(figure, largest, (full_w, full_h))
    return figure


def show(
    model: nn.Module,
    images: Sequence[str | Path],
    *,
    blocks: Sequence[int] | None = None,
    style: str = "mean",
) -> Figure:
    """A figure of the clusters that a pooled model makes of a few images, for notebooks.

    images: files. blocks: which to show; four spread over those that pool where left out.

    Raises:
        UserError: an image can't be read, a block is not there or does not pool, or the style is
            unknown.
    """
    model = find(model)
    config = data_config(model)
    paths = [Path(image) for image in images]
    if not paths:
        raise UserError("there is no image to show; give at least one.")
    seen = look(model, read_images(paths, config), config, [str(path) for path in paths], blocks)
    return clusters_figure(seen, f"schedule {seen[0].schedule}, {seen[0].method}", style)


def paint(picture: Picture, block: BlockClusters, style: str, largest: int) -> Picture:
    """The clusters of one block over a picture (H, W, 3), enlarged and outlined.

    largest: size of the largest token, where colours are sizes.
    """
    region = np.where(block.dropped, -1, block.source)
    pixels = _per_pixel(region, picture)  # (H, W)
    is_gone = (pixels < 0)[..., None]
    if style == "mean":
        filled = _means(picture, np.maximum(pixels, 0), ~is_gone[..., 0])
    elif style == "outline":
        filled = np.where(is_gone, (picture * 0.25 + 190).astype(np.uint8), picture)
        return _outlined(_upscaled(filled), _enlarged(pixels, picture))
    elif style == "size":
        filled = _coloured(_sizes(block), largest)[np.maximum(pixels, 0)]
    else:
        filled = _apart(block.tokens)[np.maximum(pixels, 0)]
    return _outlined(_upscaled(np.where(is_gone, GONE, filled)), _enlarged(pixels, picture))


def _sizes(block: BlockClusters) -> npt.NDArray[np.int64]:
    """How many patches each token stands for: (K,)."""
    return np.bincount(block.source[~block.dropped], minlength=block.tokens)


def _per_pixel(region: npt.NDArray[np.int64], picture: Picture) -> npt.NDArray[np.int64]:
    """Values of patches (rows, columns) at the pixels of the picture (H, W)."""
    rows, columns = (
        np.arange(pixels) // -(-pixels // patches)  # rounded up: a grid may be padded
        for pixels, patches in zip(picture.shape, region.shape, strict=False)
    )
    pixels: npt.NDArray[np.int64] = region[rows[:, None], columns]
    return pixels


def _means(
    picture: Picture, cluster: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_]
) -> Picture:
    """Each pixel with the mean colour of its cluster."""
    index, weight = cluster.ravel(), counted.ravel().astype(float)
    counts = np.maximum(np.bincount(index, weight), 1)
    channels = [np.bincount(index, weight * c.ravel()) / counts for c in np.moveaxis(picture, 2, 0)]
    colours: Picture = np.rint(np.stack(channels, 1)).astype(np.uint8)
    return colours[cluster]


def _coloured(sizes: npt.NDArray[np.int64], largest: int) -> Picture:
    """Colours for sizes from 1 to the largest, on a logarithmic scale: (K, 3)."""
    from matplotlib import colormaps

    share = np.log(np.maximum(sizes, 1)) / max(np.log(largest), 1e-9)
    colours: Picture = (255 * colormaps[COLOURS](share)[:, :3]).astype(np.uint8)
    return colours


def _apart(count: int) -> Picture:
    """So many colours, neighbours unlike each other: (K, 3)."""
    from matplotlib.colors import hsv_to_rgb

    k = np.arange(count)
    hues = np.stack([k * 0.618034 % 1, 0.45 + 0.4 * (k % 3) / 2, 0.95 - 0.3 * (k % 2)], 1)
    colours: Picture = (255 * hsv_to_rgb(hues)).astype(np.uint8)
    return colours


def _scale(picture: Picture) -> int:
    return max(1, -(-SIDE // int(max(picture.shape[:2]))))


def _upscaled(picture: Picture) -> Picture:
    scale = _scale(picture)
    return picture.repeat(scale, 0).repeat(scale, 1)


def _enlarged(region: npt.NDArray[np.int64], picture: Picture) -> npt.NDArray[np.int64]:
    scale = _scale(picture)
    return region.repeat(scale, 0).repeat(scale, 1)


def _outlined(picture: Picture, region: npt.NDArray[np.int64]) -> Picture:
    """A line between regions, half of it light and half dark, to be seen on any colour."""
    down, right = region[1:] != region[:-1], region[:, 1:] != region[:, :-1]
    dark, light = np.zeros(region.shape, bool), np.zeros(region.shape, bool)
    dark[1:] |= down
    dark[:, 1:] |= right
    light[:-1] |= down
    light[:, :-1] |= right
    return np.where(light[..., None], LIGHT, np.where(dark[..., None], DARK, picture))


def _words(one: Seen, with_method: bool, is_short: bool) -> str:
    """What stands beside a row; names are without folders where they differ all the same."""
    name = visible(Path(one.name).name if is_short else one.name)
    lines = [name if len(name) <= 26 else f"{name[:12]}...{name[-11:]}"]
    if with_method:
        lines += [f"by {visible(one.method)}"]
    for words, top in (("without pooling", one.base_top), ("pooled", one.pooled_top)):
        lines += ["", f"{words}:", *map(_guess, top)] if top else []
    return "\n".join(lines)


def _guess(guess: Guess) -> str:
    name = textwrap.shorten(visible(guess.name), 20, placeholder="...")
    return f"  {100 * guess.probability:.0f}%  {name}"


def _explain_sizes(figure: Figure, largest: int, inches: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    width, height = inches
    axes = figure.add_axes((TEXT / width, 0.34 / height, 2.5 / width, 0.1 / height))
    scale = ScalarMappable(LogNorm(1, max(largest, 2)), COLOURS)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal")
    ticks = [t for t in (1, 2, 4, 8, 16, 32, 64, 128, 256) if t <= max(largest, 2)]
    bar.set_ticks(ticks, labels=[str(t) for t in ticks], minor=False)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    axes.set_xlabel("patches that a token stands for", fontsize=7)


IMAGES = 3
ELSEWHERE = 0.6
"""Share of the FLOPs of the point that is shown where no curve reaches a headline."""


def pooled_strip(sources: Sequence[ModelSource], result: SweepResult) -> bytes | None:
    """A .webp of three images at the point nearest to the headline's FLOPs; None without images.

    The models are left as they were. Fine-tuned points are left out, whose weights are not at hand.
    """
    point = _headline_point(result)
    if point is None:
        return None
    source = next(s for s in sources if s.loaded.name == point.model)
    images, names = _some(source.data)
    if not names:
        return None
    model = source.loaded.model
    with unpooled(model):
        pool(model, point.tokens, options_from_dict(point.options))
        if not pooling_blocks(model):
            return None
        seen = look(model, images, source.data.config, names)
    title = f"{point.model} at {100 * point.gflops_ratio:.0f}% of its GFLOPs, {point.method}"
    return small_picture(clusters_figure(seen, title))


def _headline_point(result: SweepResult) -> Point | None:
    """The pooled point whose FLOPs are nearest to those of the first headline."""
    for headline in result.headlines:
        if headline.curve.endswith(FINETUNED):
            continue
        wanted = 1 - headline.told[1].value if headline.told else ELSEWHERE
        own = [p for p in result.points if (p.curve, p.model) == (headline.curve, headline.model)]
        if own:
            return min(own, key=lambda p: abs(p.gflops_ratio - wanted))
    return None


def _some(data: ImageData) -> tuple[torch.Tensor, list[str]]:
    """A few images that can be read, spread over the data, and what they are called."""
    images: Any = data.images
    if isinstance(images, IterableDataset):
        found = [(f"image {i}", image) for i, (image, _) in enumerate(islice(images, IMAGES))]
    else:
        count = len(images)
        found = []
        for share in range(IMAGES):
            for i in range(share * count // IMAGES, (share + 1) * count // IMAGES):
                image, target = images[i]
                if target != UNREADABLE:
                    found.append((data.names[i] if data.names else f"image {i}", image))
                    break
    names = [name for name, _ in found]
    return torch.stack([torch.as_tensor(image) for _, image in found] or [torch.empty(0)]), names
