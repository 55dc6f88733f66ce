"""From an assignment to fewer tokens: ordering, weighted means, medoids, reconstruction loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.backends import triton

from .ties import mask_at


class Clusters(NamedTuple):
    """An assignment in reading order: cluster c is the one with the c-th lowest first member.

    lead: (B, K) one member of each cluster, its lowest where nothing else is said.
    followers: (B, N - K) all other tokens, ascending.
    into: (B, N - K) the cluster of each follower.
    """

    lead: Tensor
    followers: Tensor
    into: Tensor

    @classmethod
    def from_labels(cls, labels: Tensor, k: int, leads: Tensor | None = None) -> Clusters:
        """Number clusters of any `labels` (B, N) in reading order; K distinct per sample.

        leads: (B, N) bool, one True per cluster.
        """
        parts = triton.number(labels, k, leads)
        if parts is not None:
            return cls(*parts)
        return number_by_operators(labels, k, leads)

    def labels(self) -> Tensor:
        """The cluster of each token, in [0, K): (B, N)."""
        b, k = self.lead.shape
        cluster = torch.arange(k, device=self.lead.device).expand(b, k)
        labels = self.lead.new_zeros(b, k + self.followers.shape[1]).scatter_(1, self.lead, cluster)
        return labels.scatter_(1, self.followers, self.into)

    def sums(self, values: Tensor) -> Tensor:
        """Sum `values` (B, N) per cluster: (B, K)."""
        return values.gather(1, self.lead).scatter_add(
            1, self.into, values.gather(1, self.followers)
        )


def number_by_operators(labels: Tensor, k: int, leads: Tensor | None = None) -> Clusters:
    """`Clusters.from_labels` in torch's operators."""
    b, n = labels.shape
    lowest = lowest_member(labels)  # (B, N)
    position = torch.arange(n, device=labels.device)
    leads = lowest == position if leads is None else leads
    order = torch.where(leads, lowest, position + n).argsort(dim=1)
    lead, followers = order[:, :k], order[:, k:]
    cluster = torch.arange(k, device=labels.device).expand(b, k)
    # zeros, not empty: labels that are no K clusters must not lead to memory nobody wrote
    of_lowest = torch.zeros_like(labels).scatter_(1, lowest.gather(1, lead), cluster)
    return Clusters(lead, followers, of_lowest.gather(1, lowest.gather(1, followers)))


def lowest_member(labels: Tensor, passed_over: Tensor | None = None) -> Tensor:
    """The lowest position with the same label as each token.

    labels: (B, N) integers in [0, N). passed_over: (B, N) bool, positions that do not count; not
    all of a label. Returns (B, N) positions.
    """
    n = labels.shape[1]
    # float32 holds positions exactly, and MPS has no minimum of int64
    position = torch.arange(n, dtype=torch.float32, device=labels.device).expand_as(labels)
    if passed_over is not None:
        position = position.masked_fill(passed_over, n)
    first = torch.full_like(position, n).scatter_reduce(1, labels, position, "amin")
    return first.gather(1, labels).to(torch.int64)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b]] for each sample: (B, N, C), (B, M) -> (B, M, C). Faster than a gather."""
    return (
        x.flatten(0, 1)
        .index_select(0, among_all(index, x.shape[1]))
        .view(*index.shape, x.shape[-1])
    )


class Merged(NamedTuple):
    """What merging leaves.

    tokens: (B, P + K, C). sizes: (B, K). clusters: None unless they were asked for.
    """

    tokens: Tensor
    sizes: Tensor
    clusters: Clusters | None


def merge_tokens(
    x: Tensor,
    labels: Tensor,
    k: int,
    counted: Tensor,
    shares: Tensor,
    *,
    prefix: int = 0,
    leads: Tensor | None = None,
    keep_norms: bool = False,
    keep_longest: bool = False,
    clusters: Clusters | None = None,
    numbered: bool = True,
) -> Merged:
    """Number the clusters, sum what is `counted`, and take the means: one token per cluster.

    x: (B, P + N, C). labels: (B, N), K distinct integers in [0, N). counted, shares: (B, N), what a
    token adds to its cluster's size, and its weight in the mean. leads, keep_norms, keep_longest:
    see `Clusters.from_labels`, `reduce_tokens` and `as_long_as_the_longest`. clusters: the numbered
    clusters, where they are known. numbered: whether they are wanted too.
    """
    if leads is None and not keep_longest:
        merged = c_kernels.merge_tokens(x, labels, k, counted, shares, prefix, keep_norms, numbered)
        if merged is not None:
            tokens, sizes, parts = merged
            return Merged(tokens, sizes, Clusters(*parts) if numbered else None)
    length = 2 if keep_longest else int(keep_norms)
    if clusters is not None or numbered or length == 2 or triton.takes_over(x, labels.shape[1]):
        if clusters is None or leads is not None:
            clusters = Clusters.from_labels(labels, k, leads)
        reduced = triton.means(x, clusters, counted, shares, prefix, length)
        if reduced is None:
            reduced = merge_by_operators(x, clusters, counted, shares, prefix, length)
        return Merged(*reduced, clusters)
    cluster = reading_order(labels, k, counted)
    return Merged(*_merged(x, cluster, k, counted, shares, prefix, keep_norms), None)


def merge_by_operators(
    x: Tensor, clusters: Clusters, counted: Tensor, shares: Tensor, prefix: int, length: int
) -> tuple[Tensor, Tensor]:
    """Tokens and sizes of `merge_tokens` in torch's operators; length: see `triton.means`."""
    k = clusters.lead.shape[1]
    cluster = among_all(clusters.labels(), k)
    tokens, sizes = _merged(x, cluster, k, counted, shares, prefix, length == 1)
    if length == 2:
        tokens = as_long_as_the_longest(tokens, x, clusters, prefix)
    return tokens, sizes


def _merged(
    x: Tensor,
    cluster: Tensor,
    k: int,
    counted: Tensor,
    shares: Tensor,
    prefix: int,
    keep_norms: bool,
) -> tuple[Tensor, Tensor]:
    """Tokens and sizes of clusters numbered among those of all samples."""
    b, c = x.shape[0], x.shape[2]
    zeros = counted.new_zeros(k * b, c)
    sizes = totals = add_rows(zeros[:, 0], cluster, counted.flatten(), b)
    if shares is not counted:
        totals = add_rows(zeros[:, 0], cluster, shares.flatten(), b)
    tokens = weighted_means(x, cluster, shares, totals, zeros, prefix, keep_norms)
    return tokens, sizes.view(-1, k)


def reading_order(labels: Tensor, k: int, counted: Tensor) -> Tensor:
    """The cluster of each token among those of all samples, in reading order: (B * N,) in [0, B K).

    labels: (B, N), K distinct integers in [0, N). counted: (B, N), not negative.
    """
    b, n = labels.shape
    before = torch.arange(-n, 0, dtype=counted.dtype, device=labels.device).expand(b, n)
    # less than what is counted, so that labels which no token has come last
    first = counted.scatter_reduce(1, labels, before, "amin").argsort(dim=1)[:, :k]
    number = torch.arange(b * k, device=labels.device).view(b, k)
    # labels beyond K, if there were any, would stay in the sample's own last cluster
    return number[:, -1:].expand(b, n).scatter(1, first, number).gather(1, labels).flatten()


def among_all(index: Tensor, n: int) -> Tensor:
    """Positions in each sample (B, M) as positions in all samples of `n` tokens: (B * M,)."""
    offset = torch.arange(0, index.shape[0] * n, n, device=index.device)
    return (index + offset.unsqueeze(1)).flatten()


def add_rows(zeros: Tensor, index: Tensor, rows: Tensor, samples: int) -> Tensor:
    """Sums of the rows of each cluster, in the shape of `zeros`.

    An exported program multiplies by a mask instead: index_add would become ONNX's ScatterND, in
    which threads of ONNX Runtime that add to the same row lose a summand (its issue 18048).

    zeros: (B * K, ...). index: (B * N,) in [0, B K), each in its own sample. rows: (B * N, ...).
    samples: B.
    """
    if not torch.compiler.is_exporting():
        return zeros.index_add(0, index, rows)
    clusters = torch.arange(zeros.shape[0], device=index.device).view(samples, -1, 1)
    is_member = index.view(samples, 1, -1) == clusters  # (B, K, N)
    sums = is_member.to(rows.dtype) @ rows.view(samples, is_member.shape[2], -1)
    return sums.view(zeros.shape)


def reduce_tokens(
    x: Tensor,
    clusters: Clusters,
    weights: Tensor,
    prefix: int = 0,
    *,
    totals: Tensor | None = None,
    keep_norms: bool = False,
) -> Tensor:
    """One token per cluster: the mean weighted by `weights`; differentiable in x.

    A cluster of one, and one of which one token has all the weight, pass that token through
    unchanged, to the bit.

    x: (B, P + N, C), of which the first P = `prefix` pass through. weights: (B, N), not negative,
    positive sum in each cluster. totals: (B, K) those sums, where they are known.
    keep_norms: stretch each mean to the mean length of its members. The mean of tokens that point
    different ways is shorter than they are, and what the next blocks add to it would weigh more
    than it does in them.

    Returns (B, P + K, C).
    """
    totals = clusters.sums(weights) if totals is None else totals
    cluster = among_all(clusters.labels(), totals.shape[1])
    zeros = totals.new_zeros(totals.shape[0] * totals.shape[1], x.shape[2])
    return weighted_means(x, cluster, weights, totals.flatten(), zeros, prefix, keep_norms)


def weighted_means(
    x: Tensor,
    cluster: Tensor,
    weights: Tensor,
    totals: Tensor,
    zeros: Tensor,
    prefix: int,
    keep_norms: bool,
) -> Tensor:
    """`reduce_tokens`, of clusters numbered among those of all samples.

    cluster: (B * N,) in [0, B K). totals: (B * K,). zeros: (B * K, C), to be filled.
    """
    exact = x.dtype if x.dtype.itemsize >= weights.dtype.itemsize else weights.dtype
    share = weights.to(exact) / totals.index_select(0, cluster).view(weights.shape)
    parts = (x[:, prefix:] * share.unsqueeze(-1)).flatten(0, 1)  # (B * N, C)
    zeros = zeros.to(exact)
    lengths = None
    if keep_norms:
        lengths = add_rows(zeros[:, :1], cluster, token_norms(parts), x.shape[0])
    means = add_rows(zeros, cluster, parts, x.shape[0])
    if lengths is not None:
        stretch = lengths / token_norms(means).clamp(min=constants.LEAST_NORM)
        means = means * stretch.clamp(max=constants.LARGEST_STRETCH)
    means = means.view(x.shape[0], -1, x.shape[2])
    if prefix:
        means = torch.cat([x[:, :prefix], means], dim=1)
    return means.to(x.dtype)


def as_long_as_the_longest(means: Tensor, x: Tensor, clusters: Clusters, prefix: int) -> Tensor:
    """Stretch each mean to the length of the longest member of its cluster (ToFu's MLERP).

    A cluster of one stays as it is, to the bit; differentiable in both.

    means: (B, P + K, C), x: (B, P + N, C), of which the first P = `prefix` pass through.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    lead, followers, into = clusters
    norms = token_norms(x[:, prefix:].to(exact)).squeeze(-1)
    longest = norms.gather(1, lead).scatter_reduce(1, into, norms.gather(1, followers), "amax")
    patches = means[:, prefix:].to(exact)
    stretch = longest / token_norms(patches).squeeze(-1).clamp(min=constants.LEAST_NORM)
    stretch = stretch.clamp(max=constants.LARGEST_STRETCH)
    merged = mask_at(into, lead.shape[1])
    stretched = torch.where(merged, stretch, 1.0).unsqueeze(-1) * patches
    return torch.cat([means[:, :prefix], stretched.to(means.dtype)], dim=1)


def token_norms(x: Tensor) -> Tensor:
    """Lengths of tokens: (B, N, C) -> (B, N, 1)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norms


def medoids_near_mean(z: Tensor, clusters: Clusters, weights: Tensor) -> Tensor:
    """The member nearest to its cluster's weighted mean, ties to the lowest: (B, N) bool.

    For squared distances this is the member that minimises sum_i w_i ||z_i - z_j||^2, up to
    rounding in ties.
    """
    means = reduce_tokens(z, clusters, weights)
    labels = clusters.labels()
    own = take(means, labels)
    return best_members((z - own).square().sum(-1), labels)


def best_members(cost: Tensor, labels: Tensor) -> Tensor:
    """The cheapest member of each cluster, ties to the lowest position: (B, N) bool.

    cost: (B, N); where a cluster has a NaN among its costs, its lowest member wins.
    labels: (B, N) integers in [0, N).
    """
    cheapest = torch.full_like(cost, torch.inf).scatter_reduce(1, labels, cost, "amin")
    winner = lowest_member(labels, passed_over=cost > cheapest.gather(1, labels))
    return winner == torch.arange(labels.shape[1], device=labels.device)


def reconstruction_loss(z: Tensor, clusters: Clusters, weights: Tensor) -> Tensor:
    """sum_i w_i ||z_i - mean of its cluster||^2 per sample, the objective of Token Pooling.

    z: (B, N, D). weights: (B, N). Returns (B,).
    """
    means = reduce_tokens(z, clusters, weights)
    own = take(means, clusters.labels())
    return ((z - own).square().sum(-1) * weights).sum(1)
