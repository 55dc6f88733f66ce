"""The kernels as operators of torch, so that `torch.compile` keeps one graph with them in it.

They are reached by `tpcli.pooling.triton` while a graph is made. In the graph they run the kernels;
where these can't be run, the torch operators that define them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import triton
from .clusters import Clusters, merge_by_operators
from .gradients import gradient_of_means
from .ward import ward_by_operators

Three = tuple[Tensor, Tensor, Tensor]
Two = tuple[Tensor, Tensor]


@torch.library.custom_op("tpcli::ward_labels", mutates_args=())
def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Tensor:
    """`tpcli.pooling.triton.ward_labels`."""
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
    """`tpcli.pooling.triton.means`."""
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
