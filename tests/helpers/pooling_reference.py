"""The operators once more, as plain loops in float64, written from their definitions."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def squared_distances(z: Floats) -> Floats:
    """D_ij = ||z_i - z_j||^2 by explicit differences."""
    return np.square(z[:, None, :] - z[None, :, :]).sum(-1)


def start_positions(start: str, z: Floats, k: int, w: Floats) -> list[int]:
    """The K tokens that clustering starts from, ascending."""
    n = len(z)
    if start == "top-k":
        return sorted(sorted(range(n), key=lambda i: (-w[i], i))[:k])
    if start == "even":
        return [int(np.floor((c + 0.5) * n / k)) for c in range(k)]
    if start == "ward":
        return _ward_positions(z, k, w)
    assert start == "matching"
    return _matching_positions(z, k, w)


def _ward_positions(z: Floats, k: int, w: Floats) -> list[int]:
    """The medoid of each cluster that two rounds of Ward make."""
    labels, d, positions = ward(z, k, w, 2), squared_distances(z), []
    for label in set(labels):
        members = [i for i in range(len(z)) if labels[i] == label]
        cost = {j: sum(w[i] * d[i, j] for i in members) for j in members}
        positions.append(min(members, key=lambda j: (cost[j], j)))
    return sorted(positions)


def ward(z: Floats, k: int, w: Floats, rounds: int) -> list[int]:
    """Ward's clustering in at least `rounds` rounds: the lowest member of each token's cluster.

    In a round every cluster points at the partner that is cheapest to merge with. The cheapest
    pointers merge: of two that point at each other the higher one does, and a pointer that is not
    returned counts twice its cost. Of costs that are nearly equal the lower position's is lower.
    """
    n = len(z)
    rounds = rounds or (1 if n - k < n / 8 else 2)
    groups = [[i] for i in range(n)]
    while len(groups) > k:
        merges = min(math.ceil((len(groups) - k) / max(rounds, 1)), max(len(groups) // 5, 1))
        rounds -= 1
        mass = np.array([w[group].sum() for group in groups])
        means = np.array([(w[group, None] * z[group]).sum(0) for group in groups]) / mass[:, None]
        line = 256.0 * len(groups) - np.arange(len(groups))
        later = 1 + np.arange(len(groups)) / (256 * len(groups))
        norms = np.add.outer(np.square(means).sum(1), np.square(means).sum(1))
        distances = norms - 2 * (1 - 2**-16) * means @ means.T + 1e-26
        cost = distances / np.add.outer(line / mass, line / mass)
        np.fill_diagonal(cost, np.inf)
        every = range(len(groups))
        partner = [int(cost[a].argmin()) for a in every]  # NumPy's is the first of equals
        offers = []
        for a, b in enumerate(partner):
            mutual = partner[b] == a
            if not (mutual and a < b):
                offers.append((cost[a, b] * (1 if mutual else 2) * later[a], a))
        parent = list(every)
        for _, a in sorted(offers)[:merges]:
            parent[a] = partner[a]
        for _ in every:
            parent = [parent[p] for p in parent]
        merged: dict[int, list[int]] = {root: [] for root in parent}
        for a, root in enumerate(parent):
            merged[root] += groups[a]
        groups = sorted(sorted(group) for group in merged.values())
    lowest = {i: group[0] for group in groups for i in group}
    return [lowest[i] for i in range(n)]


def _matching_positions(z: Floats, k: int, w: Floats) -> list[int]:
    d = squared_distances(z)
    mass = w.copy()
    alive = list(range(len(z)))
    while len(alive) > k:
        away = min(len(alive) - k, len(alive) // 2)
        candidates = []
        for i in alive[1::2]:
            costs = [(mass[i] * mass[j] / (mass[i] + mass[j]) * d[i, j], j) for j in alive[0::2]]
            cost, partner = min(costs)
            candidates.append((cost, i, partner))
        for _, i, partner in sorted(candidates)[:away]:
            mass[partner] += mass[i]
            alive.remove(i)
    return alive


def k_medoids(
    z: Floats, start: list[int], w: Floats, iterations: int
) -> tuple[list[int], list[int]]:
    """Labels (the medoid of each token) and medoids; ties go to the lowest index."""
    n, d = len(z), squared_distances(z)
    medoids = sorted(start)

    def assign() -> list[int]:
        labels = []
        for i in range(n):
            best = min(medoids, key=lambda m: (d[i, m], m))
            labels.append(i if i in medoids else best)
        return labels

    labels = assign()
    for _ in range(iterations):
        moved = []
        for medoid in medoids:
            members = [i for i in range(n) if labels[i] == medoid]
            costs = [(sum(w[i] * d[i, j] for i in members), j) for j in members]
            moved.append(min(costs)[1])
        if sorted(moved) == medoids:
            break
        medoids = sorted(moved)
        labels = assign()
    return labels, medoids


def k_means(z: Floats, start: list[int], w: Floats, iterations: int) -> tuple[list[int], Floats]:
    """Labels in [0, K) and centres, before any repair; an emptied cluster keeps its centre."""
    centres = z[start].copy()

    def assign() -> list[int]:
        return [int(np.argmin([np.square(t - c).sum() for c in centres])) for t in z]

    labels = assign()
    for _ in range(iterations):
        for c in range(len(centres)):
            members = [i for i in range(len(z)) if labels[i] == c]
            if members:
                centres[c] = sum(w[i] * z[i] for i in members) / sum(w[i] for i in members)
        labels = assign()
    return labels, centres


def medoid_objective(z: Floats, medoids: list[int], w: Floats) -> float:
    """sum_i w_i min_m D_im."""
    return float((squared_distances(z)[:, medoids].min(1) * w).sum())


def best_medoid_objective(z: Floats, k: int, w: Floats) -> float:
    """The optimum, by trying every set of K medoids."""
    return min(medoid_objective(z, list(m), w) for m in combinations(range(len(z)), k))


def mean_objective(z: Floats, labels: NDArray[np.int64], w: Floats) -> float:
    """sum_i w_i ||z_i - weighted mean of its cluster||^2."""
    total = 0.0
    for c in np.unique(labels):
        inside, mass = z[labels == c], w[labels == c]
        mean = (mass[:, None] * inside).sum(0) / mass.sum()
        total += float((mass * np.square(inside - mean).sum(-1)).sum())
    return total


def partition(labels: NDArray[np.int64]) -> set[frozenset[int]]:
    """The clusters as sets of positions, whatever their numbers."""
    return {frozenset(np.flatnonzero(labels == c).tolist()) for c in np.unique(labels)}
