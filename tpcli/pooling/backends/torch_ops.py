"""The kernels as operators of torch, so that `torch.compile` makes one graph with them in it.

`tpcli.pooling.backends.triton` calls them while a graph is made. Inductor sees the kernels inside
and launches them itself. On the CPU they are the torch operators that define them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpcli.pooling.clusters import (
    Clusters,
    merge_by_operators,
    number_by_operators,
    reduce_tokens,
    take,
    token_norms,
)
from tpcli.pooling.ties import mask_at
from tpcli.pooling.ward import ward_by_operators

from . import dispatch as constants


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


Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]

GPUS = ("cuda", "xpu")
"""Devices whose tensors the kernels take in a graph."""


@torch.library.triton_op("tpcli::ward_labels", mutates_args=())
def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Four:
    """`launch.ward` in a graph."""
    if z.device.type in GPUS:
        from tpcli.pooling.backends.triton import launch

        return launch.ward(z, weights, candidates, merges, normalized, traced=True)
    labels = ward_by_operators(z.float(), weights, candidates, merges, normalized)
    lead, followers, into = number_by_operators(labels, z.shape[1] - sum(merges))
    return labels, lead.clone(), followers.clone(), into


@torch.library.triton_op("tpcli::number", mutates_args=())
def number(labels: Tensor, k: int, leads: Tensor | None) -> Three:
    """`launch.number` in a graph."""
    if labels.device.type in GPUS:
        from tpcli.pooling.backends.triton import launch

        return launch.number(labels, k, leads, traced=True)
    lead, followers, into = number_by_operators(labels, k, leads)
    return lead.clone(), followers.clone(), into  # parts of one tensor; results must not be


@torch.library.triton_op("tpcli::means", mutates_args=())
def means(
    x: Tensor,
    lead: Tensor,
    followers: Tensor,
    into: Tensor,
    counted: Tensor,
    shares: Tensor,
    prefix: int,
    length: int,
) -> Two:
    """`launch.means` in a graph."""
    if x.device.type in GPUS:
        from tpcli.pooling.backends.triton import launch

        parts = (lead, followers, into)
        return launch.means(x, parts, counted, shares, prefix, length, traced=True)
    clusters = Clusters(lead, followers, into)
    return merge_by_operators(x, clusters, counted, shares, prefix, length)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Two) -> None:
    x, *parts, _, shares, ctx.prefix, ctx.length = inputs
    ctx.save_for_backward(x, *parts, shares)


def _backward(ctx: Any, tokens: Tensor, sizes: Tensor) -> tuple[Tensor | None, ...]:
    x, *parts, shares = ctx.saved_tensors
    grad = gradient_of_means(tokens, x, Clusters(*parts), shares, ctx.prefix, ctx.length)
    return grad, *[None] * 7


means.register_autograd(_backward, setup_context=_keep)
