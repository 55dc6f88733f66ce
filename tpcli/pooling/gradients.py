"""How means of clusters depend on the tokens, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from . import constants
from .clusters import Clusters, reduce_tokens, take, token_norms
from .order import mask_at


def gradient_of_means(
    gradient: Tensor, x: Tensor, clusters: Clusters, shares: Tensor, prefix: int, length: int
) -> Tensor:
    """The gradient of the tokens that `merge_tokens` was given, from that of those it made.

    gradient: (B, P + K, C). x: (B, P + N, C). shares: (B, N). length: 0 for plain means, 1 for
    those as long as their members on average, 2 as the longest. Returns (B, P + N, C).
    """
    labels = clusters.labels()
    share = (shares / clusters.sums(shares).gather(1, labels)).unsqueeze(-1)  # (B, N, 1)
    of_mean = gradient[:, prefix:].float()
    if length == 0:
        own = share * take(of_mean, labels)
    else:
        tokens = x[:, prefix:].float()
        mean = reduce_tokens(tokens, clusters, shares)
        norms = token_norms(tokens)
        part = share if length == 1 else _of_the_longest(norms, clusters)
        wanted = torch.zeros_like(mean[..., :1]).scatter_add(1, labels[..., None], part * norms)
        at_least = (wanted / constants.LARGEST_STRETCH).clamp(min=constants.LEAST_NORM)
        found = token_norms(mean)
        divisor = found.maximum(at_least)
        along = (of_mean * mean).sum(-1, keepdim=True) / divisor
        is_free = found > at_least  # not at the largest stretch, where lengths play no part
        of_length = torch.where(is_free, along, 0.0)
        away = torch.where(is_free, along * wanted / divisor.square(), 0.0) * mean
        of_mean_there = of_mean * (wanted / divisor) - away
        direction = tokens / norms.clamp(min=constants.LEAST_NORM)
        own = share * take(of_mean_there, labels) + part * take(of_length, labels) * direction
        merged = mask_at(clusters.into, of_mean.shape[1]).gather(1, labels).unsqueeze(-1)
        own = torch.where(merged, own, take(of_mean, labels))
    return torch.cat([gradient[:, :prefix], own.to(gradient.dtype)], dim=1)


def _of_the_longest(norms: Tensor, clusters: Clusters) -> Tensor:
    """1 for the longest member of each cluster, split evenly between equal ones: (B, N, 1)."""
    labels = clusters.labels()
    flat = norms.squeeze(-1)
    most = torch.zeros_like(clusters.lead, dtype=flat.dtype)
    longest = most.scatter_reduce(1, labels, flat, "amax").gather(1, labels)
    is_longest = (flat == longest).to(flat.dtype)
    return (is_longest / clusters.sums(is_longest).gather(1, labels)).unsqueeze(-1)
