"""What compiled forms have to be sure of before they read memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise where a tensor has another shape.

    Raises:
        ValueError: names the tensor and both shapes.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {shape} is needed")


def check_merges(n: int, candidates: int, merges: Sequence[int]) -> None:
    """Raise where so many tokens can't be chosen among `n`, or merged in each round.

    Raises:
        ValueError: says how many there are.
    """
    if not 1 <= candidates <= n:
        raise ValueError(f"{candidates} candidates can't be chosen among {n} tokens")
    left = candidates
    for count in merges:
        if not 1 <= count <= left // 2:
            raise ValueError(f"{count} merges can't be made among {left} clusters; half at most")
        left -= count


def check_clusters(x: Tensor, labels: Tensor, k: int, prefix: int) -> None:
    """Raise unless x is (B, P + N, C), labels (B, N), and N can become K.

    Raises:
        ValueError: names the shapes or numbers.
    """
    if x.ndim != 3 or labels.ndim != 2:
        raise ValueError(
            f"x and labels have the shapes {tuple(x.shape)} and {tuple(labels.shape)}; "
            "(B, P + N, C) and (B, N) are needed"
        )
    b, n = labels.shape
    if prefix < 0 or not 1 <= k <= n:
        raise ValueError(f"{n} tokens after {prefix} others can't become {k}")
    check_shape("x", x, (b, prefix + n, x.shape[2]))
