"""Methods of single modules replaced, in a way that copies, pickles and replicas follow.

What a method replaces is kept, also where it was put on that one module (a patch, a hook of
accelerate), so that the new method can call it and `restore` can give it back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import nn

REPLICATE = "_replicate_for_data_parallel"
"""What `nn.DataParallel` calls on each module to get the copy that another device runs."""
REPLACED = "_replaced_by_pooling"
"""The attribute of a module with its replaced methods: by name, the new one and, where the module
had one of its own, the old one."""
HOOKED = "_old_forward"
"""Where accelerate's hooks keep the forward that they run, and put it back from."""


def override(module: nn.Module, name: str, function: Callable[..., Any], *args: Any) -> None:
    """Make `module.name(...)` call `function(module, *args, ...)`; no-op where it does already.

    Hooks of accelerate run around it.
    """
    if is_overridden(module, name):
        return
    attributes = vars(module)
    place = HOOKED if name == "forward" and HOOKED in attributes else name
    new = partial(function, module, *args)
    attributes.setdefault(REPLACED, {})[name] = new, attributes.get(place)
    attributes[place] = new
    attributes[REPLICATE] = partial(_replicate, module)


def is_overridden(module: nn.Module, name: str) -> bool:
    """Whether a call of `module.name` gets to our method, be it through what others put around."""
    return name in vars(module).get(REPLACED, {}) and name in vars(module)


def restore(module: nn.Module, *names: str) -> None:
    """Give `module` its methods of these names back, as they were.

    A method that others have wrapped since stays inside their wrapper, and calls what it replaced.
    """
    attributes = vars(module)
    replaced = attributes.get(REPLACED, {})
    for name in names:
        new, old = replaced.get(name, (None, None))
        place = next((p for p in (name, HOOKED) if new and attributes.get(p) is new), None)
        if place == HOOKED and old is None:
            old = MethodType(getattr(type(module), name), module)  # hooks run what is there
        if place and old is not None:
            attributes[place] = old
        elif place:
            del attributes[place]
        if place or name not in attributes:
            replaced.pop(name, None)
    if not replaced:
        attributes.pop(REPLACED, None)
        attributes.pop(REPLICATE, None)


def call_original(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the method behind ours: the one that was put on `module`, else that of its class."""
    _, old = getattr(module, REPLACED)[name]
    if old is None:
        return getattr(type(module), name)(module, *args, **kwargs)
    return old(*args, **kwargs)


def own_method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    """The method of this name that others put on this one module; hooks of accelerate are none."""
    attributes = vars(module)
    method = attributes.get(name)
    if name in attributes.get(REPLACED, {}):
        _, method = attributes[REPLACED][name]
    elif name == "forward":
        method = attributes.get(HOOKED, method)
    is_of_class = getattr(method, "__func__", None) is getattr(type(module), name, None)
    return None if is_of_class else method


def _replicate(module: nn.Module) -> nn.Module:
    """A replica whose replaced methods are bound to itself, and so use its own parameters."""
    replica: nn.Module = getattr(type(module), REPLICATE)(module)

    def rebound(method: Any) -> Any:
        if isinstance(method, partial) and method.args[:1] == (module,):
            return partial(method.func, replica, *method.args[1:])
        if isinstance(method, MethodType) and method.__self__ is module:
            return MethodType(method.__func__, replica)
        return method

    for name, value in vars(module).items():
        if isinstance(value, partial | MethodType):
            vars(replica)[name] = rebound(value)
    vars(replica)[REPLACED] = {
        name: (rebound(new), rebound(old)) for name, (new, old) in vars(module)[REPLACED].items()
    }
    return replica
