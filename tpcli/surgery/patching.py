"""Methods of single modules replaced, in a way that copies, pickles and replicas follow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .spec import pooling_spec

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


def write_pooling_of_wrapped() -> None:
    """Make transformers' wrapper of timm models, where it is in use, save how they are pooled.

    Its `save_pretrained` knows nothing of the model inside but its weights.
    """
    module = sys.modules.get("transformers.models.timm_wrapper.modeling_timm_wrapper")
    wrapper = getattr(module, "TimmWrapperPreTrainedModel", None)
    if wrapper is None or "save_pretrained" in vars(wrapper):
        return

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        spec = pooling_spec(self.timm_model)
        self.config.token_pooling = None if spec is None else spec.to_dict()
        return super(wrapper, self).save_pretrained(*args, **kwargs)

    wrapper.save_pretrained = save_pretrained
