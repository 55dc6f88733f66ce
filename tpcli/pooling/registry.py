"""Methods by name. A new method is one module that calls `register`; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from tpcli.errors import UserError, did_you_mean


class Assignment(NamedTuple):
    """What a method decides: who goes with whom, and optionally who speaks for the cluster.

    labels: (B, N) cluster of each token, any integers in [0, N); exactly K distinct ones per sample.
    medoids: (B, N) bool, one True per cluster; None where the method has no such token.
    """

    labels: Tensor
    medoids: Tensor | None = None


Assign = Callable[..., Assignment]
"""assign(z, k, *, weights, sizes, start, iterations) -> Assignment, all float32, without gradient.

z: (B, N, D) what distances are measured on; weights, sizes: (B, N); k: clusters, 1 <= k < N.
"""


@dataclass(frozen=True)
class Method:
    """A way to turn N tokens into K.

    name: what the user types. summary: one line. paper: where it is from.
    assign: the operator. defaults: pooling options that this method prefers over the general ones.
    """

    name: str
    summary: str
    paper: str
    assign: Assign
    defaults: Mapping[str, object] = field(default_factory=dict)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make `method` available under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in _METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in _METHODS:
        known = ", ".join(_METHODS)
        raise UserError(f"method {name!r} is unknown; use one of {known}.{did_you_mean(name, _METHODS)}")
    return _METHODS[name]


def methods() -> list[Method]:
    """All methods, in the order in which they were registered."""
    return list(_METHODS.values())
