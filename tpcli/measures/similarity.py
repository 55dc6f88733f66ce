"""How far a pooled model's features are from the unpooled model's."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .answers import Answers, Floats, chunks
from .nearest import nearest
from .scores import Scores, scores

NEIGHBOURS = 10
MOST_QUERIES = 10_000
"""Images whose neighbours are looked up, spread evenly where there are more; every image is among
those that they are looked up in."""


def similarity(pooled: Answers, unpooled: Answers, device: torch.device) -> Scores:
    """The cosine of each image's features in both models; beside it `recall` of neighbours.

    Both: features of the same images.
    """
    each = cosines(pooled.rows, unpooled.rows)
    more = {}
    if len(each) > 1:
        more["neighbours"] = 100 * recall(pooled.rows, unpooled.rows, device)
    speed, unreadable = pooled.images_per_second, pooled.unreadable
    return scores("similarity", each, speed, unreadable, **more)


def cosines(ours: Floats, theirs: Floats) -> Floats:
    """(count, D), (count, D) -> (count,)."""
    pairs = chunks(ours, theirs)
    found = [F.cosine_similarity(a.double(), b.double(), dim=1) for a, b in pairs]
    each: Floats = torch.cat(found).clamp(-1, 1).numpy().astype(np.float32)
    return each


def recall(ours: Floats, theirs: Floats, device: torch.device) -> float:
    """The share of each image's 10 nearest by `theirs` that are among its 10 nearest by `ours`."""
    count = len(ours)
    k = min(NEIGHBOURS, count - 1)
    asked = np.linspace(0, count - 1, min(count, MOST_QUERIES)).round().astype(np.int64)
    found = zip(
        nearest(ours[asked], ours, k, device, asked),
        nearest(theirs[asked], theirs, k, device, asked),
        strict=True,
    )
    common = 0
    for (_, own), (_, wanted) in found:
        common += int((own[:, :, None] == wanted[:, None, :]).sum())
    return common / (k * len(asked))
