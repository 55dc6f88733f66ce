"""Ward's clustering and the merging of tokens as compiled loops, for CPUs.

There a pooling made of some 180 small operators costs more overhead than work. Where the package
was installed with a C compiler, `ward` and `merge_tokens` hand their work to these kernels, as long
as nobody watches the operators (autograd, a tracer, a compiler, a counter). The results are the
same up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

kernels: Any
try:
    from . import kernels
except ImportError:  # there was no compiler, or torch brings no OpenMP that fits
    kernels = None


def can_run(*tensors: Tensor) -> bool:
    """Whether the kernels are there, and may stand in for operators on these tensors."""
    if torch.compiler.is_compiling() or kernels is None:
        return False
    if torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack():
        return False
    recorded = torch.is_grad_enabled()
    return all(
        type(tensor) is Tensor
        and tensor.is_cpu
        and not (recorded and tensor.requires_grad)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Tensor | None:
    """Labels of `ward`, each its cluster's lowest member: (B, N, D), (B, N) -> (B, N).

    candidates: tokens that take part, by a sketch of all; N for all. merges: in each round. None
    where the kernels can't be used.
    """
    if z.dtype != torch.float32 or not can_run(z, weights):
        return None
    z, weights = _dense_rows(z), weights.float().contiguous()
    labels = torch.empty(z.shape[:2], dtype=torch.int64)
    done = kernels.ward_labels(
        (*z.shape, torch.get_num_threads()),
        _tokens(z),
        weights.data_ptr(),
        candidates,
        list(merges),
        normalized,
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

    None where the kernels can't be used, or there are not K clusters.
    """
    if x.dtype not in (torch.float32, torch.bfloat16) or not can_run(x, shares):
        return None
    b, n = labels.shape
    x, labels = _dense_rows(x), labels.to(torch.int64).contiguous()
    counted, shares = counted.float().contiguous(), shares.float().contiguous()
    lengths = (k, n - k, n - k) if numbered else ()
    parts = tuple(labels.new_empty(b, length) for length in lengths)
    sizes = counted.new_empty(b, k)
    means = x.new_empty(b, prefix + k, x.shape[2])
    done = kernels.merge_tokens(
        (b, n, x.shape[2], torch.get_num_threads()),
        _tokens(x),
        prefix,
        labels.data_ptr(),
        counted.data_ptr(),
        shares.data_ptr(),
        keep_norms,
        (k, *(part.data_ptr() for part in parts)) if numbered else (k, 0, 0, 0),
        sizes.data_ptr(),
        means.data_ptr(),
    )
    return (means, sizes, parts) if done else None


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _tokens(x: Tensor) -> tuple[int, int, int, bool]:
    return x.data_ptr(), x.stride(0), x.stride(1), x.dtype == torch.bfloat16
