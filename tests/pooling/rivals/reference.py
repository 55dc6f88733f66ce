"""The rivals once more, as plain loops in float64, each written from its paper's equations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def means(z: Floats, sizes: Floats, groups: list[list[int]]) -> tuple[Floats, Floats]:
    """Size-weighted mean and total size of each group."""
    centres = [sum(sizes[i] * z[i] for i in g) / sum(sizes[i] for i in g) for g in groups]
    return np.array(centres), np.array([sum(sizes[i] for i in g) for g in groups])


def in_rounds(z: Floats, sizes: Floats, k: int, merges) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """Groups of original tokens; `merges(z, remove)` gives (gone, into) pairs of one round."""
    groups = [[i] for i in range(len(z))]
    current, mass = z, sizes
    while len(groups) > k:
        remove = min(len(groups) - k, len(groups) // 2)
        members = {i: list(group) for i, group in enumerate(groups)}
        rows = {i: [i] for i in range(len(groups))}
        for gone, into in merges(current, remove):
            members[into] += members.pop(gone)
            rows[into] += rows.pop(gone)
        order = sorted(members, key=lambda i: min(members[i]))
        groups = [sorted(members[i]) for i in order]
        current, mass = means(current, mass, [rows[i] for i in order])
    return groups


def tome(z: Floats, sizes: Floats, k: int) -> list[list[int]]:
    def merges(current: Floats, remove: int) -> list[tuple[int, int]]:
        edges = []
        for i in range(1, len(current), 2):
            similarity, j = max(
                ((cosine(current[i], current[j]), j) for j in range(0, len(current), 2)),
                key=lambda pair: pair[0],
            )
            edges.append((similarity, i, j))
        edges.sort(key=lambda edge: -edge[0])
        return [(i, j) for _, i, j in edges[:remove]]

    return in_rounds(z, sizes, k, merges)


def pitome(
    z: Floats, sizes: Floats, k: int, depth: float, margin: float = 0.9, alpha: float = 1.0
) -> list[list[int]]:
    m = margin * (1 - depth)

    def merges(current: Floats, remove: int) -> list[tuple[int, int]]:
        n = len(current)
        energy = []
        for i in range(n):
            total = 0.0
            for j in range(n):
                if i != j:
                    x = cosine(current[i], current[j])
                    total += x if x >= m else alpha * (math.exp(x - m) - 1)
            energy.append(total / n)
        order = sorted(range(n), key=lambda i: -energy[i])[: 2 * remove]
        stay, go = order[0::2], order[1::2]
        return [(i, max(stay, key=lambda j: cosine(current[i], current[j]))) for i in go]

    return in_rounds(z, sizes, k, merges)


def mctf(
    z: Floats, attention: Floats, sizes: Floats, k: int, tau_info: float, tau_size: float
) -> list[list[int]]:
    groups = [[i] for i in range(len(z))]
    while len(groups) > k:
        mass = [sum(attention[i] * sizes[i] for i in g) for g in groups]
        x = [sum(attention[i] * sizes[i] * z[i] for i in g) for g in groups]
        x = [total / m for total, m in zip(x, mass, strict=True)]
        a = [sum(attention[i] for i in g) for g in groups]
        s = [sum(sizes[i] for i in g) for g in groups]

        def attraction(i: int, j: int) -> float:
            similar = (cosine(x[i], x[j]) + 1) / 2  # noqa: B023
            return similar * (1 / (a[i] * a[j])) ** tau_info * (1 / (s[i] * s[j])) ** tau_size  # noqa: B023

        n = len(groups)
        remove = min(n - k, n // 2)
        odd, even = list(range(1, n, 2)), list(range(0, n, 2))
        parent = {}
        for sources, targets, count in (
            (odd, even, remove // 2),
            (even, odd, remove - remove // 2),
        ):
            left = [j for j in targets if j not in parent]
            best = {i: max(left, key=lambda j: attraction(i, j)) for i in sources}
            order = sorted(sources, key=lambda i: -attraction(i, best[i]))
            parent.update({i: best[i] for i in order[:count]})
        members = {i: list(group) for i, group in enumerate(groups)}
        for i in range(n):
            root = i
            while root in parent:
                root = parent[root]
            if root != i:
                members[root] += members.pop(i)
        groups = sorted(sorted(group) for group in members.values())
    return groups


def diffrate(
    x: Floats, attention: Floats, k: int, dropped: float
) -> tuple[dict[int, list[int]], list[int]]:
    """What merges into each of the K tokens that stay, itself included, and what is dropped."""
    order = sorted(range(len(x)), key=lambda i: (-attention[i], i))
    count = len(x) - math.floor(dropped * (len(x) - k) + 0.5)
    groups = {i: [i] for i in sorted(order[:k])}
    for i in order[k:count]:
        groups[max(groups, key=lambda j: cosine(x[i], x[j]))].append(i)
    return groups, order[count:]


def tofu_drops(z: Floats, k: int) -> list[int]:
    """The K tokens that stay where the source of each of ToMe's pairs is dropped."""
    alive = list(range(len(z)))
    while len(alive) > k:
        edges = []
        for i in alive[1::2]:
            edges.append((max(cosine(z[i], z[j]) for j in alive[0::2]), i))
        edges.sort(key=lambda edge: -edge[0])
        gone = {i for _, i in edges[: min(len(alive) - k, len(alive) // 2)]}
        alive = [i for i in alive if i not in gone]
    return alive


def mlerp(x: Floats, sizes: Floats, group: list[int]) -> Floats:
    """The mean of a group, as long as its longest member."""
    mean = sum(sizes[i] * x[i] for i in group) / sum(sizes[i] for i in group)
    longest = max(float(np.linalg.norm(x[i])) for i in group)
    return np.asarray(mean / np.linalg.norm(mean) * longest)


def dpc_knn(z: Floats, k: int, neighbours: int = 5) -> tuple[list[int], list[int]]:
    """Label of each token (its centre), and the centres."""
    n, channels = z.shape
    d = [[float(np.square(z[i] - z[j]).sum()) / channels for j in range(n)] for i in range(n)]
    density = []
    for i in range(n):
        near = sorted(d[i][j] for j in range(n) if j != i)[:neighbours]
        density.append(math.exp(-sum(near) / len(near)))
    score = []
    for i in range(n):
        denser = [
            j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        away = min(math.sqrt(d[i][j]) for j in denser) if denser else math.sqrt(max(d[i]))
        score.append(density[i] * away)
    centres = sorted(range(n), key=lambda i: -score[i])[:k]
    labels = [i if i in centres else min(centres, key=lambda c: d[i][c]) for i in range(n)]
    return labels, sorted(centres)


def atc(z: Floats, k: int, linkage: str) -> list[list[int]]:
    groups = [[i] for i in range(len(z))]
    fold = {"average": np.mean, "complete": np.max, "single": np.min}[linkage]
    while len(groups) > k:
        best = min(
            (float(fold([1 - cosine(z[i], z[j]) for i in a for j in b])), p, q)
            for p, a in enumerate(groups)
            for q, b in enumerate(groups)
            if p < q
        )
        groups[best[1]] = sorted(groups[best[1]] + groups.pop(best[2]))
    return sorted(groups)


def grid(x: Floats, rows: int, columns: int, k_rows: int, k_columns: int) -> Floats:
    """Average of each box; box (a, b) holds cells with floor(y h / H) = a, floor(x w / W) = b."""
    out = np.zeros((k_rows * k_columns, x.shape[1]))
    count = np.zeros(k_rows * k_columns)
    for y in range(rows):
        for column in range(columns):
            box = (y * k_rows // rows) * k_columns + column * k_columns // columns
            out[box] += x[y * columns + column]
            count[box] += 1
    return out / count[:, None]


def evit(x: Floats, attention: Floats, k: int) -> Floats:
    """The K - 1 tokens of most attention, and the attention-weighted mean of the rest, in the order
    of the first token that each stands for."""
    order = sorted(range(len(x)), key=lambda i: (-attention[i], i))
    kept, rest = sorted(order[: k - 1]), sorted(order[k - 1 :])
    fused = sum(attention[i] * x[i] for i in rest) / sum(attention[i] for i in rest)
    outputs = [(i, x[i]) for i in kept] + [(rest[0], fused)]
    return np.array([value for _, value in sorted(outputs, key=lambda pair: pair[0])])
