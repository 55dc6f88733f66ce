"""One score per image, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli.stats import Each, mean, mean_interval

from .answers import Answers, Floats, chunks


@dataclass(frozen=True)
class Scores:
    """What was measured.

    each: (count,) the score of every image that could be read, in the data's order: whether it is
    right, or a cosine. score: their mean, ci95: its 95% interval, both in percent. more: what was
    measured beside it. images_per_second: time in the model alone.
    """

    measure: str
    each: Each = field(repr=False)
    score: float
    ci95: tuple[float, float]
    images_per_second: float
    unreadable: tuple[str, ...] = ()
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Images that were read and counted."""
        return len(self.each)


def scores(
    measure: str,
    each: Each,
    images_per_second: float,
    unreadable: tuple[str, ...],
    **more: float,
) -> Scores:
    """The mean with its interval: Wilson's for shares, a bootstrap over images for means."""
    low, high = mean_interval(each)
    ci95 = (100 * low, 100 * high)
    return Scores(measure, each, 100 * mean(each), ci95, images_per_second, unreadable, more)


def agreement(pooled: Answers, unpooled: Answers) -> Scores:
    """Which images have the same best class, and the mean KL(unpooled || pooled), in nats.

    Both: logits of the same images.
    """
    same, total = [], 0.0
    for ours, theirs in chunks(pooled.rows, unpooled.rows):
        same.append(ours.argmax(1) == theirs.argmax(1))
        each = F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none"
        )
        total += float(each.sum(1).double().sum())
    found = torch.cat(same).numpy()
    kl = max(0.0, total / len(found))
    return scores("agreement", found, pooled.images_per_second, pooled.unreadable, kl=kl)


QUERIES, BANK = 512, 32768
"""Rows that are compared with each other at a time: 64 MiB of cosines."""


def nearest(
    queries: Floats,
    bank: Floats,
    k: int,
    device: torch.device,
    own: npt.NDArray[np.int64] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The k rows of `bank` that are nearest to each query: cosines and positions, nearest first.

    queries: (Q, D). bank: (M, D). own: (Q,) where each query lies in the bank, which is no
    neighbour of itself. Yields (B, k) float32 and (B, k) int64 on the CPU, for the queries in turn.
    """
    for start in range(0, len(queries), QUERIES):
        rows = _normal(queries[start : start + QUERIES], device)
        best = torch.full((len(rows), k), -torch.inf, device=device)
        where = torch.zeros((len(rows), k), dtype=torch.int64, device=device)
        for first in range(0, len(bank), BANK):
            cosines = rows @ _normal(bank[first : first + BANK], device).T  # (B, M')
            if own is not None:
                places = torch.from_numpy(own[start : start + QUERIES]).to(device) - first
                (inside,) = ((places >= 0) & (places < cosines.shape[1])).nonzero(as_tuple=True)
                cosines[inside, places[inside]] = -torch.inf
            top = cosines.topk(min(k, cosines.shape[1]), dim=1)
            both = torch.cat([best, top.values], 1)
            best, order = both.topk(k, dim=1)
            where = torch.cat([where, top.indices + first], 1).gather(1, order)
        yield best.cpu(), where.cpu()


def _normal(rows: Floats, device: torch.device) -> Tensor:
    """Rows of length 1, on the device."""
    return F.normalize(torch.from_numpy(np.array(rows, dtype=np.float32)).to(device), dim=1)


KNN_NEIGHBOURS = 20
TEMPERATURE = 0.07


def knn(queries: Answers, bank: Answers, device: torch.device) -> Scores:
    """Which images are of the class that their 20 nearest in the bank vote for.

    A neighbour at cosine c has exp(c / 0.07) votes.
    """
    each = vote(queries, bank, device) == queries.targets
    return scores("knn", each, queries.images_per_second, queries.unreadable)


def vote(queries: Answers, bank: Answers, device: torch.device) -> npt.NDArray[np.int64]:
    """The class of most votes for each query; the lowest of several: (count,)."""
    classes, labels = np.unique(bank.targets, return_inverse=True)
    indices = torch.from_numpy(labels.reshape(-1))
    k = min(KNN_NEIGHBOURS, len(labels))
    guesses = []
    for cosines, places in nearest(queries.rows, bank.rows, k, device):
        weights = (cosines.double() / TEMPERATURE).exp()
        votes = torch.zeros(len(cosines), len(classes), dtype=torch.float64)
        votes.scatter_add_(1, indices[places], weights)
        guesses.append(votes.numpy().argmax(1))
    found: npt.NDArray[np.int64] = classes[np.concatenate(guesses)]
    return found


NEIGHBOURS = 10
MOST_QUERIES = 10_000
"""Images whose neighbours are looked up, spread evenly where there are more; every image is among
those that they are looked up in."""


def similarity(pooled: Answers, unpooled: Answers, device: torch.device) -> Scores:
    """The cosine of each image's features in both models; beside it `recall` of neighbours.

    Both: features of the same images.
    """
    pairs = chunks(pooled.rows, unpooled.rows)
    found = [F.cosine_similarity(a.double(), b.double(), dim=1) for a, b in pairs]
    each = torch.cat(found).clamp(-1, 1).float().numpy()
    more = {}
    if len(each) > 1:
        more["neighbours"] = 100 * recall(pooled.rows, unpooled.rows, device)
    speed, unreadable = pooled.images_per_second, pooled.unreadable
    return scores("similarity", each, speed, unreadable, **more)


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
    common = sum(int((a[:, :, None] == b[:, None, :]).sum()) for (_, a), (_, b) in found)
    return common / (k * len(asked))
