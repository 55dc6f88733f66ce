"""Three images in the report of a sweep: what is one token where the headline is reached."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from tpcli.analysis.clusters import look, pooling_blocks
from tpcli.data import UNREADABLE, ImageData
from tpcli.options import options_from_dict
from tpcli.pareto import ModelSource, Point, SweepResult
from tpcli.pareto.points import FINETUNED
from tpcli.planning import pool
from tpcli.surgery import unpooled

from .clusters import clusters_figure
from .figure import small_picture

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
        if headline.method.endswith(FINETUNED):
            continue
        wanted = 1 - headline.told[1].value if headline.told else ELSEWHERE
        own = [p for p in result.points if (p.method, p.model) == (headline.method, headline.model)]
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
