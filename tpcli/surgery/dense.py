"""Features for every patch of what is left of them: pure tensor maths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tpcli.pooling import Clusters
from tpcli.pooling.clusters import take
from tpcli.pooling.distances import squared_distances
from tpcli.pooling.ties import lowest


class Patches(NamedTuple):
    """What becomes of each patch, where dense features are asked for.

    source: (B, N_0) the token that stands for each patch; a dropped one has the token nearest to
    it. offset: (B, N_0, C) what sets the patch apart from that token. None as long as every patch
    is a token of its own.
    """

    source: Tensor | None = None
    offset: Tensor | None = None


def spread(tokens: Tensor, source: Tensor) -> Tensor:
    """Give each patch the token that stands for it; differentiable in the tokens.

    tokens: (B, K, C) patch tokens, without prefix tokens. source: (B, N_0) the token of each patch,
    as `trace` records it. Returns (B, N_0, C).

    Raises:
        ValueError: the shapes don't go together.
    """
    if tokens.ndim != 3 or source.ndim != 2 or len(tokens) != len(source):
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} and a source map of shape "
            f"{tuple(source.shape)} don't go together; give (B, K, C) and (B, N)."
        )
    return tokens.gather(1, source.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))


def stand_ins(metric: Tensor, clusters: Clusters, kept: Tensor | None) -> Tensor:
    """The cluster that each token goes on in: (B, N); a dropped one in that of the nearest kept.

    metric: (B, N, D). kept: (B, N) bool, None where nothing is dropped.
    """
    labels = clusters.labels()
    if kept is None:
        return labels
    distance = squared_distances(metric, metric).masked_fill(~kept.unsqueeze(1), torch.inf)
    return torch.where(kept, labels, labels.gather(1, lowest(distance)[1]))


def merged_patches(patches: Patches, before: Tensor, after: Tensor, index: Tensor) -> Patches:
    """What becomes of the patches when tokens `before` (B, N, C) merge into `after` (B, K, C).

    index: (B, N) the token after that stands for each before.
    """
    lost = before - take(after, index)
    if patches.source is None or patches.offset is None:
        return Patches(index, lost)
    return Patches(index.gather(1, patches.source), patches.offset + take(lost, patches.source))
