"""Top-1 of a weighted vote of the nearest training images, as DINO evaluates (Caron et al.)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from .answers import Answers
from .nearest import nearest
from .scores import Scores, scores

NEIGHBOURS = 20
TEMPERATURE = 0.07


def knn(queries: Answers, bank: Answers, device: torch.device) -> Scores:
    """Which images are of the class that their 20 nearest in the bank vote for.

    A neighbour at cosine c has exp(c / 0.07) votes.
    """
    guesses = vote(queries, bank, device)
    each = guesses == queries.targets
    return scores("knn", each, queries.images_per_second, queries.unreadable)


def vote(queries: Answers, bank: Answers, device: torch.device) -> npt.NDArray[np.int64]:
    """The class of most votes for each query; the lowest of several: (count,)."""
    classes, labels = np.unique(bank.targets, return_inverse=True)
    indices = torch.from_numpy(labels.reshape(-1))
    k = min(NEIGHBOURS, len(labels))
    guesses = []
    for cosines, places in nearest(queries.rows, bank.rows, k, device):
        weights = (cosines.double() / TEMPERATURE).exp()
        votes = torch.zeros(len(cosines), len(classes), dtype=torch.float64)
        votes.scatter_add_(1, indices[places], weights)
        guesses.append(votes.numpy().argmax(1))
    found: npt.NDArray[np.int64] = classes[np.concatenate(guesses)]
    return found
