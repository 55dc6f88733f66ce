"""Methods of single modules replaced, in a way that copies, pickles and replicas follow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

REPLICATE = "_replicate_for_data_parallel"
"""What `nn.DataParallel` calls on each module to get the copy that another device runs."""


def override(module: nn.Module, name: str, function: Callable[..., Any], *args: Any) -> None:
    """Make `module.name(...)` call `function(module, *args, ...)`."""
    vars(module)[name] = partial(function, module, *args)
    vars(module)[REPLICATE] = partial(_replicate, module)


def restore(module: nn.Module, *names: str) -> None:
    """Give `module` its own methods of these names back."""
    for name in (*names, REPLICATE):
        vars(module).pop(name, None)


def _replicate(module: nn.Module) -> nn.Module:
    """A replica whose replaced methods are bound to itself, and so use its own parameters."""
    replica: nn.Module = getattr(type(module), REPLICATE)(module)
    for name, value in vars(module).items():
        if isinstance(value, partial) and value.args[:1] == (module,):
            vars(replica)[name] = partial(value.func, replica, *value.args[1:])
    return replica
