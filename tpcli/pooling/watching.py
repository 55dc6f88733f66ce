"""Who watches torch's operators: compiled forms stand in for them only where nobody does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", None)


def watcher(tensors: Sequence[Tensor]) -> str | None:
    """Why operators have to run on these tensors, in words; None where nobody watches."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "a tracer watches"
    if _dispatch_modes is None or _dispatch_modes():
        return "a dispatch mode watches"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "gradients are recorded"
    return None


def is_plain(tensor: Tensor, device: str) -> bool:
    """Whether the values lie in the memory of such a device as the tensor's strides say."""
    if type(tensor) is not Tensor or tensor.device.type != device:
        return False
    if tensor.layout != torch.strided or tensor.is_neg():
        return False
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # a wrapper, as under vmap
        return False
