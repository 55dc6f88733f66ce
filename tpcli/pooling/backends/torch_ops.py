"""The kernels as operators of torch, so that `torch.compile` keeps one graph with them in it.

`tpcli.pooling.backends.triton` calls them while a graph is made. In the graph they run the kernels;
where these can't be run, the torch operators that define them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpcli.pooling.clusters import Clusters, merge_by_operators, reduce_tokens, take, token_norms
from tpcli.pooling.ties import mask_at
from tpcli.pooling.ward import ward_by_operators

from . import dispatch as constants
from . import triton


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


Three = tuple[Tensor, Tensor, Tensor]
Two = tuple[Tensor, Tensor]


@torch.library.custom_op("tpcli::ward_labels", mutates_args=())
def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Tensor:
    """`tpcli.pooling.backends.triton.ward_labels`."""
    found = triton.ward_labels(z, weights, candidates, merges, normalized)
    if found is None:
        found = ward_by_operators(z.float(), weights, candidates, merges, normalized)
    return found


@ward_labels.register_fake
def _(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Tensor:
    return z.new_empty(z.shape[:2], dtype=torch.int64)


@torch.library.custom_op("tpcli::number", mutates_args=())
def number(labels: Tensor, k: int, leads: Tensor | None) -> Three:
    """`Clusters.from_labels`, which runs the kernel."""
    return _apart(Clusters.from_labels(labels, k, leads))


@number.register_fake
def _(labels: Tensor, k: int, leads: Tensor | None) -> Three:
    return _like(labels, k)


@torch.library.custom_op("tpcli::means", mutates_args=())
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
    """`tpcli.pooling.backends.triton.means`."""
    clusters = Clusters(lead, followers, into)
    found = triton.means(x, clusters, counted, shares, prefix, length)
    if found is None:
        found = merge_by_operators(x, clusters, counted, shares, prefix, length)
    return found


@means.register_fake
def _(
    x: Tensor,
    lead: Tensor,
    followers: Tensor,
    into: Tensor,
    counted: Tensor,
    shares: Tensor,
    prefix: int,
    length: int,
) -> Two:
    b, k = lead.shape
    return x.new_empty(b, prefix + k, x.shape[2]), counted.new_empty(b, k)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Two) -> None:
    x, *parts, _, shares, ctx.prefix, ctx.length = inputs
    ctx.save_for_backward(x, *parts, shares)


def _backward(ctx: Any, tokens: Tensor, sizes: Tensor) -> tuple[Tensor | None, ...]:
    x, *parts, shares = ctx.saved_tensors
    grad = gradient_of_means(tokens, x, Clusters(*parts), shares, ctx.prefix, ctx.length)
    return grad, *[None] * 7


means.register_autograd(_backward, setup_context=_keep)


def _apart(clusters: Clusters) -> Three:
    """The parts, which may lie in one piece of memory, each in its own."""
    lead, followers, into = clusters
    return lead.clone(), followers.clone(), into.clone()


def _like(labels: Tensor, k: int) -> Three:
    b, n = labels.shape
    lead, followers, into = (
        labels.new_empty((b, count), dtype=torch.int64) for count in (k, n - k, n - k)
    )
    return lead, followers, into
