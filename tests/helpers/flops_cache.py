"""Counts of FLOPs, each made once: half of the suite's time would go to making them again.

From when this is imported on, `tpcli.flops.count_flops` remembers its counts by all that a count
can depend on. The tests of the counts themselves take the one here, which remembers nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import chain

import torch
from torch import nn

from tpcli import flops
from tpcli.config.options import PoolingOptions

count_flops = flops.count_flops

REMEMBERED: dict[Hashable, flops.FlopCount] = {}
PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype, torch.Size, PoolingOptions)


def _remembered(
    model: nn.Module, input_size: tuple[int, int, int] | None = None
) -> flops.FlopCount:
    key = (_description(model), input_size)
    if key not in REMEMBERED:
        REMEMBERED[key] = count_flops(model, input_size)
    return REMEMBERED[key]


def _description(model: nn.Module) -> Hashable:
    """Every module's class, plain attributes, own methods, hooks and shapes of tensors."""
    return tuple(
        (name, type(module), *_attributes(module), *_tensors(module))
        for name, module in model.named_modules()
    )


def _attributes(module: nn.Module) -> Iterator[Hashable]:
    yield len(module._forward_hooks), len(module._forward_pre_hooks)
    for name, value in sorted(vars(module).items()):
        if isinstance(value, PLAIN) and name != "training":
            yield name, repr(value)
        elif callable(value):
            yield name


def _tensors(module: nn.Module) -> Iterator[Hashable]:
    own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    for name, tensor in own:
        yield name, type(tensor), tensor.shape, tensor.dtype, tensor.device


flops.count_flops = _remembered
