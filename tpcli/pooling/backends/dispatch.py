"""When compiled kernels may replace torch's operators; checks of shapes; constants of them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)


def obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Why torch's operators have to run on these tensors; None where kernels may."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "a tracer records them"
    if _dispatch_modes is None or _dispatch_modes():
        return "a dispatch mode is active"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "autograd records them"
    return None


def is_plain(tensor: Tensor, devices: Sequence[str]) -> bool:
    """Whether the values lie in the memory of such a device as the tensor's strides say."""
    if type(tensor) is not Tensor or tensor.device.type not in devices:
        return False
    if tensor.layout != torch.strided or tensor.is_neg():
        return False
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # a wrapper, as under vmap
        return False


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


FAR = 1e30
"""Squared distance from a token that is not finite to any other."""

SHRINK = 2**-16
"""Products count less by this share in Ward's distances, so that rounding leaves none below zero:
||z_i - z_j||^2 can't be told from 0 below some 2^-21 of ||z_i||^2 + ||z_j||^2."""

LEAST_PRODUCT = 1e-26
"""Added to products, times some 256 N, so that no distance is 0."""

PLACES = 256
"""Positions move no cost of Ward's by more than 1 / `PLACES` against another."""

RELUCTANCE = 2.0
"""Penalty on one-sided merges: the partner will move to its own cheaper match."""

SKETCH_DIM = 48
"""Channels of the sketch that finds Ward's candidates."""

LAYER_NORM_EPSILON = 1e-5
"""What is added to a token's variance; torch's own default."""

LARGEST_STRETCH = 100.0
"""No mean is stretched by more, where tokens cancel each other."""

LEAST_NORM = 1e-30
"""No mean is divided by a norm below it."""
