"""Ward's clustering, the numbering of clusters and the merging of tokens as Triton kernels.

On a GPU a pooling made of many small operators costs their launches. There `ward`,
`Clusters.from_labels` and `merge_tokens` are a handful of kernels, as long as nobody watches the
operators (autograd, a tracer, an export, a counter). In a graph of `torch.compile` they stand as
operators of their own (`tpcli.pooling.backends.torch_ops`). Triton comes with torch's builds for
CUDA; nothing here imports it before the first tensor on a GPU comes by. The results are those of
torch's operators up to rounding.

In Triton's interpreter (`TRITON_INTERPRET=1`) the kernels take tensors of the CPU instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcli.pooling.backends.dispatch import check_merges, check_shape, is_plain, watcher

if TYPE_CHECKING:
    from .launch import Parts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
AVAILABLE = find_spec("triton") is not None and (INTERPRETED or torch.version.cuda is not None)

MOST_TOKENS = 1024
"""One program holds all tokens of a sample, but not their channels."""

MOST_CHANNELS = 2048
"""One program holds a few whole tokens."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

INTEGERS = (torch.int64, torch.int32)

failed = False
"""Whether a kernel could not be compiled or launched; then all of them are left alone."""


def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> Tensor | None:
    """Labels of `ward` (B, N), which know how they are numbered; None where operators have to run.

    z: (B, N, D) of any of `FLOATS`. candidates: tokens that take part, by a sketch of all; N for
    all. merges: in each round. normalized: layer norm is still to be applied to z.

    Raises:
        ValueError: shapes don't fit together, or so many tokens can't be chosen or merged.
    """
    if not (_takes(z) and _stands_in(z, z.shape[1])) or weights.dtype != torch.float32:
        return None
    check_shape("weights", weights, z.shape[:2])
    check_merges(z.shape[1], candidates, merges)
    weights = weights.detach()  # what is nearest has no gradient
    arguments = (z, weights, candidates, merges, normalized)
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.tpcli.ward_labels(*arguments)
        return found
    launched = _launched("ward", (z, weights), *arguments)
    if launched is None:
        return None
    labels: Tensor = launched[0]
    labels.numbered = launched[1:]  # type: ignore[attr-defined]
    return labels


def number(labels: Tensor, k: int, leads: Tensor | None) -> Parts | None:
    """The parts of `Clusters.from_labels`; None where operators have to run.

    Raises:
        ValueError: shapes don't fit together.
    """
    if labels.dtype not in INTEGERS or not _stands_in(labels, labels.shape[1]):
        return None
    if leads is not None:
        check_shape("leads", leads, labels.shape)
    found: Parts | None
    if torch.compiler.is_compiling():
        found = torch.ops.tpcli.number(labels, k, leads)
    elif leads is None and hasattr(labels, "numbered"):
        found = labels.numbered
    else:
        tensors = [labels] if leads is None else [labels, leads]
        found = _launched("number", tensors, labels, k, leads)
    return found


def means(
    x: Tensor, parts: Parts, counted: Tensor, shares: Tensor, prefix: int, length: int
) -> tuple[Tensor, Tensor] | None:
    """Tokens (B, P + K, C) and sizes (B, K) of `merge_tokens`; None where operators have to run.

    length: 0 for plain means, 1 for those as long as their members on average, 2 as the longest.

    Raises:
        ValueError: shapes don't fit together.
    """
    n = counted.shape[1]
    if not (_takes(x) and _stands_in(x, n)) or {counted.dtype, shares.dtype} != {torch.float32}:
        return None
    check_shape("x", x, (counted.shape[0], prefix + n, x.shape[2]))
    check_shape("shares", shares, counted.shape)
    found: tuple[Tensor, Tensor] | None
    if torch.compiler.is_compiling():
        if torch.is_grad_enabled() and (counted.requires_grad or shares.requires_grad):
            return None  # only the tokens' gradient is known
        found = torch.ops.tpcli.means(x, *parts, counted, shares, prefix, length)
    else:
        tensors = (x, *parts, counted, shares)
        found = _launched("means", tensors, x, parts, counted, shares, prefix, length)
    return found


def takes_over(x: Tensor, n: int) -> bool:
    """Whether `means` may be a kernel, for N tokens beside the prefix."""
    return _takes(x) and _stands_in(x, n) and (torch.compiler.is_compiling() or can_run(x))


def can_run(*tensors: Tensor) -> bool:
    """Whether nobody watches the operators, and these tensors are plain memory of a GPU."""
    why_not = watcher(tensors)
    if why_not is None and not all(is_plain(tensor, DEVICE) for tensor in tensors):
        why_not = "a tensor is not plain memory of the GPU"
    _tell(why_not)
    return why_not is None


def _stands_in(tensor: Tensor, n: int) -> bool:
    """Whether there are kernels for N tokens on the device of such a tensor."""
    if not AVAILABLE or failed or torch.compiler.is_exporting():
        return False
    return tensor.device.type == DEVICE and 1 <= n <= MOST_TOKENS


def _takes(x: Tensor) -> bool:
    """Whether there are kernels for tokens (B, N, C) of this type and length."""
    return x.ndim == 3 and x.dtype in FLOATS and 1 <= x.shape[2] <= MOST_CHANNELS


def _launched(form: str, tensors: Sequence[Tensor], *arguments: Any) -> Any:
    """What that function of `launch` makes of it; None, and one warning, where it fails."""
    global failed
    if not can_run(*tensors):
        return None
    try:
        from . import launch

        with launch.on_device_of(tensors[0]):
            return getattr(launch, form)(*arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, driver or card may not be able to do
        failed = True
        said = " ".join(str(error).split())[:200]
        logging.getLogger("tpcli").warning(
            "a Triton kernel could not be run (%s: %s); pooling goes on in torch's operators, "
            "which are slower on a GPU",
            *(type(error).__name__, said),
        )
        return None


@cache
def _tell(why_not: str | None) -> None:
    form = "in Triton's kernels" if why_not is None else f"in torch's operators: {why_not}"
    logging.getLogger("tpcli").debug("pooling runs %s", form)
