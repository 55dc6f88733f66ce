"""Ward's clustering, the numbering of clusters and the merging of tokens as Triton kernels.

On a GPU a pooling made of many small operators costs their launches. There `ward`,
`Clusters.from_labels` and `merge_tokens` are a handful of kernels, unless torch's operators are
recorded: by autograd, a tracer, an export or a dispatch mode. In a graph of `torch.compile` they
are operators that Inductor sees into (`tpcli.pooling.backends.torch_ops`). The results are those of
torch's operators up to rounding.

Kernels run where torch brings Triton: NVIDIA, AMD (ROCm) and Intel (XPU). The first pooling on a
device compares a small one with torch's operators. A kernel that fails, there or later, is switched
off on that device alone. Nothing here imports Triton before the first tensor on a GPU comes by.

In Triton's interpreter (`TRITON_INTERPRET=1`) the kernels take tensors of the CPU instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcli.pooling.backends.dispatch import check_merges, check_shape, is_plain, obstacle

if TYPE_CHECKING:
    from .launch import Parts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES: tuple[str, ...] = ("cpu",) if INTERPRETED else ("cuda", "xpu")
"""Types of device whose tensors kernels take; ROCm's is `cuda` too."""

AVAILABLE = find_spec("triton") is not None

MOST_TOKENS = 4096
"""One program holds all tokens of a sample, but not their channels."""

MOST_CHANNELS = 2048
"""One program holds a few whole tokens."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

INTEGERS = (torch.int64, torch.int32)

KERNELS = {
    "ward": ("measure", "nearest", "choose", "join", "means"),
    "number": ("number",),
    "means": ("means", "partial", "combine"),
}
"""What the functions of `launch` are made of."""

switched_off: set[tuple[torch.device, str]] = set()
"""Kernels that failed, each on one device."""

self_checks: list[Callable[[torch.device], None]] = []
"""What is done at the first use of a device: `tpcli.pooling.backends.self_check`, which knows the
operators, adds itself."""

_checked: set[torch.device] = set()
_log = logging.getLogger("tpcli")


def ward_labels(
    z: Tensor, weights: Tensor, candidates: int, merges: Sequence[int], normalized: bool
) -> tuple[Tensor, Parts] | None:
    """Labels of `ward` (B, N) and the parts of their `Clusters`; None where operators have to run.

    z: (B, N, D) of any of `FLOATS`. candidates: tokens that take part, by a sketch of all; N for
    all. merges: in each round. normalized: layer norm is still to be applied to z.

    Raises:
        ValueError: shapes don't fit together, or so many tokens can't be chosen or merged.
    """
    if not (_takes(z) and _has_kernels("ward", z, z.shape[1])) or weights.dtype != torch.float32:
        return None
    check_shape("weights", weights, z.shape[:2])
    check_merges(z.shape[1], candidates, merges)
    weights = weights.detach()  # what is nearest has no gradient
    found = _launched("ward", (z, weights), z, weights, candidates, merges, normalized)
    return None if found is None else (found[0], tuple(found[1:]))


def number(labels: Tensor, k: int, leads: Tensor | None) -> Parts | None:
    """The parts of `Clusters.from_labels`; None where operators have to run.

    Raises:
        ValueError: shapes don't fit together.
    """
    if labels.dtype not in INTEGERS or not _has_kernels("number", labels, labels.shape[1]):
        return None
    if leads is not None:
        check_shape("leads", leads, labels.shape)
    tensors = [labels] if leads is None else [labels, leads]
    found: Parts | None = _launched("number", tensors, labels, k, leads)
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
    floats = {counted.dtype, shares.dtype}
    if not (_takes(x) and _has_kernels("means", x, n)) or floats != {torch.float32}:
        return None
    check_shape("x", x, (counted.shape[0], prefix + n, x.shape[2]))
    check_shape("shares", shares, counted.shape)
    needs_gradient = counted.requires_grad or shares.requires_grad
    if needs_gradient and torch.compiler.is_compiling() and torch.is_grad_enabled():
        return None  # only the tokens' gradient is known
    tensors = (x, *parts, counted, shares)
    found: tuple[Tensor, Tensor] | None = _launched(
        "means", tensors, x, parts, counted, shares, prefix, length
    )
    return found


def takes_over(x: Tensor, n: int) -> bool:
    """Whether `means` may be a kernel, for N tokens beside the prefix."""
    if not (_takes(x) and _has_kernels("means", x, n)):
        return False
    return torch.compiler.is_compiling() or can_run(x)


def can_run(*tensors: Tensor) -> bool:
    """Whether nothing records the operators, and these tensors are plain memory of a GPU."""
    why_not = obstacle(tensors)
    if why_not is None and not all(is_plain(tensor, DEVICES) for tensor in tensors):
        why_not = "a tensor is not plain memory of the GPU"
    _tell(why_not)
    return why_not is None


def _takes(x: Tensor) -> bool:
    """Whether there are kernels for tokens (B, N, C) of this type and length."""
    if x.ndim != 3 or x.dtype not in FLOATS or x.shape[2] < 1:
        return False
    if x.shape[2] > MOST_CHANNELS and x.device.type in DEVICES:
        _warn_once(f"tokens of {x.shape[2]} channels (kernels take up to {MOST_CHANNELS})")
    return x.shape[2] <= MOST_CHANNELS


def _has_kernels(form: str, tensor: Tensor, n: int) -> bool:
    """Whether that function of `launch` may run for N tokens on the device of such a tensor."""
    device = tensor.device
    if not AVAILABLE or device.type not in DEVICES or torch.compiler.is_exporting():
        return False
    if n > MOST_TOKENS:
        _warn_once(f"{n} tokens in an image (kernels take up to {MOST_TOKENS})")
        return False
    if n < 1 or (torch.compiler.is_compiling() and INTERPRETED):
        return False
    if torch.compiler.is_compiling():
        return bool(_works(form, device.type, device.index or 0))
    return not switched_off or all((device, name) not in switched_off for name in KERNELS[form])


def _launched(form: str, tensors: Sequence[Tensor], *arguments: Any) -> Any:
    """The result of that function of `launch`; None where operators have to run."""
    if torch.compiler.is_compiling():
        if form == "ward":
            return torch.ops.tpcli.ward_labels(*arguments)
        if form == "number":
            return torch.ops.tpcli.number(*arguments)
        x, parts, *others = arguments
        return torch.ops.tpcli.means(x, *parts, *others)
    device = tensors[0].device
    if not can_run(*tensors):
        return None
    if device not in _checked and not _first_use(form, device):
        return None
    return guarded(form, device, *arguments)


def guarded(form: str, device: torch.device, *arguments: Any) -> Any:
    """Run a function of `launch`; switch off the kernel that fails.

    Raises:
        RuntimeError: the device reports an error, whoever caused it, or refuses a capture.
    """
    from . import launch

    try:
        with launch.on_device_of(arguments[0]):
            return getattr(launch, form)(*arguments)
    except launch.KernelError as error:
        cause = error.__cause__
        assert cause is not None
        if is_of_the_device(cause):
            raise cause from None
        said = " ".join(str(cause).split())[:200]
        switch_off(device, str(error), f"could not be run ({type(cause).__name__}: {said})")
        return None


def is_of_the_device(error: BaseException) -> bool:
    """Whether an error is the device's own, perhaps of earlier work, and no fault of a kernel."""
    if isinstance(error, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    if any(words in text for words in ("no kernel image", "invalid device function", "ptx")):
        return False  # the card is too old or too new for what was compiled
    marks = ("cuda error", "hip error", "triton error [", "capturing", "illegal memory")
    return isinstance(error, RuntimeError) and any(mark in text for mark in marks)


def switch_off(device: torch.device, name: str, why: str) -> None:
    """Leave a kernel alone on that device from now on, and say so."""
    switched_off.add((device, name))
    _log.warning(
        "Triton's kernel %s is switched off on %s: it %s; pooling goes on in torch's operators, "
        "which are slower on a GPU",
        *(name, device, why),
    )


def _first_use(form: str, device: torch.device) -> bool:
    """Check the kernels on a device before anything relies on them; whether `form` may run."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _warn_once(
            "a CUDA graph that is captured before the first pooling (warm up before capture)"
        )
        return False
    _checked.add(device)
    try:
        for check in self_checks:
            check(device)
    except Exception as error:  # Triton itself may be broken
        if isinstance(error, torch.OutOfMemoryError) or is_of_the_device(error):
            _checked.discard(device)
            raise
        for name in sorted({name for names in KERNELS.values() for name in names}):
            switch_off(device, name, f"could not be checked ({type(error).__name__}: {error})")
    return all((device, name) not in switched_off for name in KERNELS[form])


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _works(form: str, kind: str, index: int) -> bool:
    """Whether `form` may stand in a graph, which is asked while the graph is made."""
    device = torch.device("cpu") if kind == "cpu" else torch.device(kind, index)
    if device not in _checked:
        return _first_use(form, device)
    return all((device, name) not in switched_off for name in KERNELS[form])


def _warn_once(what: str) -> None:
    if not torch.compiler.is_compiling():
        _warn(what)


@cache
def _warn(what: str) -> None:
    _log.warning("pooling runs in torch's operators, which are slower on a GPU: %s", what)


@cache
def _tell(why_not: str | None) -> None:
    form = "in Triton's kernels" if why_not is None else f"in torch's operators: {why_not}"
    _log.debug("pooling runs %s", form)
