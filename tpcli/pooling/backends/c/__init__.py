"""Ward's clustering and the merging of tokens in C, for CPUs.

There a pooling made of a hundred small operators costs more overhead than work. Where the package
was installed with a C compiler, `ward` and `merge_tokens` hand their work to these kernels, unless
torch's operators are recorded (by autograd, a tracer, a compiler, a counter). The results are the
same up to rounding. Which form runs, and why, is logged once at DEBUG.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tpcli.pooling.backends import dispatch as constants
from tpcli.pooling.backends.dispatch import (
    check_clusters,
    check_merges,
    check_shape,
    is_plain,
    obstacle,
)

kernels: Any
not_built = ""
try:
    kernels = import_module(".loops", __name__)
except ImportError as error:  # there was no compiler, or torch brings no OpenMP that fits
    kernels, not_built = None, f" ({error})"

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def can_run(*tensors: Tensor) -> bool:
    """Whether the kernels are there, and may stand in for operators on these tensors."""
    if torch.compiler.is_compiling():
        return False
    why_not = _obstacle(tensors)
    _tell(why_not)
    return why_not is None


def _obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Why operators have to run."""
    if kernels is None:
        return f"the C kernels were not built{not_built}"
    why_not = obstacle(tensors)
    if why_not is not None:
        return why_not
    for tensor in tensors:
        if not is_plain(tensor, ("cpu",)):
            return f"a tensor on {tensor.device.type} is not plain memory of the CPU"
    return None


@cache
def _tell(why_not: str | None) -> None:
    form = "in the C kernels" if why_not is None else f"in torch's operators: {why_not}"
    logging.getLogger("tpcli").debug("pooling runs %s", form)


def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Tensor | None:
    """Labels of `ward`, each its cluster's lowest member: (B, N, D), (B, N) -> (B, N).

    candidates: tokens that take part, by a sketch of all; N for all. merges: in each round. None
    where the kernels can't be used: beside the reasons of `can_run`, if a type is not float32 or a
    weight is not positive and finite.

    Raises:
        ValueError: shapes don't fit together, or so many tokens can't be chosen or merged.
    """
    if z.dtype != torch.float32 or weights.dtype != torch.float32 or not can_run(z, weights):
        return None
    if z.ndim != 3:
        raise ValueError(f"z has the shape {tuple(z.shape)}; (B, N, D) is needed")
    b, n, channels = z.shape
    check_shape("weights", weights, (b, n))
    check_merges(n, candidates, merges)
    z, weights = _dense_rows(z), weights.contiguous()
    labels = z.new_empty((b, n), dtype=torch.int64)
    done = kernels.ward_labels(
        (b, n, channels, torch.get_num_threads()),
        _tokens(z),
        weights.data_ptr(),
        candidates,
        list(merges),
        normalized,
        (
            constants.SKETCH_DIM,
            constants.RELUCTANCE,
            constants.FAR,
            constants.LAYER_NORM_EPSILON,
            constants.SHRINK,
            constants.LEAST_PRODUCT,
            constants.PLACES,
        ),
        labels.data_ptr(),
    )
    return labels if done else None


def merge_tokens(
    x: Tensor,
    labels: Tensor,
    k: int,
    counted: Tensor,
    shares: Tensor,
    prefix: int,
    keep_norms: bool,
    numbered: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]] | None:
    """Means, sizes and, if `numbered`, the parts of `Clusters`: `merge_tokens` of clusters.py.

    None where the kernels can't be used: beside the reasons of `can_run`, if a type is another than
    float32 (x: or bfloat16; labels: any integer), x has a tangent, or there are not K clusters.

    Raises:
        ValueError: shapes don't fit together, or N tokens can't become K.
    """
    if x.dtype not in (torch.float32, torch.bfloat16) or labels.dtype not in INTEGERS:
        return None
    if counted.dtype != torch.float32 or shares.dtype != torch.float32:
        return None
    if not can_run(x, labels, counted, shares) or forward_ad.unpack_dual(x).tangent is not None:
        return None
    check_clusters(x, labels, k, prefix)
    b, n = labels.shape
    channels = x.shape[2]
    check_shape("counted", counted, (b, n))
    check_shape("shares", shares, (b, n))
    x, labels = _dense_rows(x), labels.to(torch.int64).contiguous()
    counted, shares = counted.contiguous(), shares.contiguous()
    lengths = (k, n - k, n - k) if numbered else ()
    parts = tuple(labels.new_empty(b, length) for length in lengths)
    sizes = counted.new_empty(b, k)
    means = x.new_empty(b, prefix + k, channels)
    done = kernels.merge_tokens(
        (b, n, channels, torch.get_num_threads()),
        _tokens(x),
        prefix,
        labels.data_ptr(),
        counted.data_ptr(),
        shares.data_ptr(),
        keep_norms,
        (constants.LARGEST_STRETCH, constants.LEAST_NORM),
        (k, *(part.data_ptr() for part in parts)) if numbered else (k, 0, 0, 0),
        sizes.data_ptr(),
        means.data_ptr(),
    )
    return (means, sizes, parts) if done else None


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _tokens(x: Tensor) -> tuple[int, int, int, bool]:
    return x.data_ptr(), x.stride(0), x.stride(1), x.dtype == torch.bfloat16
