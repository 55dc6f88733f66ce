"""Operators by the name of their method. A new one is a module that calls `implement`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import NamedTuple

from torch import Tensor

from tpcli.config.methods import METHODS, Description, describe

from .clusters import Clusters

KEYWORDS = ("weights", "sizes", "start", "iterations", "grid", "depth", "normalized")
"""What an operator may ask to be called with, beside the metric and K."""


class Assignment(NamedTuple):
    """What a method decides: who goes with whom, and optionally who speaks for the cluster.

    labels: (B, N) cluster of each token, integers in [0, N); exactly K distinct ones per sample.
    medoids: (B, N) bool, one True per cluster; None where the method has no such token.
    shares: (B, N) how much each token counts in its cluster's mean, where the method itself says
    so; None leaves it to the reduce option. A token with share 0 is dropped: it adds nothing to the
    features nor to the size of its cluster, and its label only says where it was.
    clusters: the same clusters in reading order, where the method has numbered them already.
    """

    labels: Tensor
    medoids: Tensor | None = None
    shares: Tensor | None = None
    clusters: Clusters | None = None


Assign = Callable[..., Assignment]
"""assign(z, k, **keywords) -> Assignment, all float32, without gradient.

z: (B, N, D) what distances are measured on; k: clusters, 1 <= k < N. The keywords are those of
KEYWORDS that the method takes, and its own parameters. weights, sizes: (B, N). grid: (H, W), the
model's patch grid. depth: share of the blocks that lie before this one, in [0, 1). normalized: the
metric is z after a layer norm, which is left to the method that takes this keyword: it may need
only some tokens. z then has the tokens' own type.
"""


@dataclass(frozen=True)
class Method(Description):
    """A way to turn N tokens into K: what `Description` says of it, and its operator.

    assign: the operator; called with those of KEYWORDS and of its parameters that it takes.
    counts: (N, grid) -> the K that N tokens can become, where not all can.
    """

    assign: Assign
    counts: Callable[[int, tuple[int, int]], Sequence[int]] | None = None

    keywords: tuple[str, ...] = field(init=False)
    """What `assign` is called with, beside z and k."""

    def __post_init__(self) -> None:
        asked = signature(self.assign).parameters
        keywords = tuple(name for name in KEYWORDS if name in asked)
        object.__setattr__(self, "keywords", keywords)

    def __call__(self, z: Tensor, k: int, **available: object) -> Assignment:
        """`assign` with those of the available keywords that this method takes."""
        keywords = {name: available[name] for name in self.keywords if name in available}
        return self.assign(z, k, **keywords)

    def allowed(self, n: int, wanted: int, grid: tuple[int, int]) -> int:
        """The smallest number from `wanted` up that this method can turn `n` tokens into."""
        wanted = max(1, min(wanted, n))
        if self.counts is None:
            return wanted
        return min((count for count in self.counts(n, grid) if count >= wanted), default=n)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make `method` available under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in _METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    METHODS.setdefault(method.name, method)
    _METHODS[method.name] = method
    return method


def implement(
    name: str,
    assign: Assign,
    counts: Callable[[int, tuple[int, int]], Sequence[int]] | None = None,
) -> Method:
    """Register the operator of a method that `tpcli.config.methods` describes."""
    return register(Method(**vars(METHODS[name]), assign=assign, counts=counts))


def get_method(spec: str) -> Method:
    """The method of that name; parameters may follow it: `atc:linkage=complete`.

    Raises:
        UserError: there is none, or it has no such parameter; the message lists those there are.
    """
    described, values = describe(spec)
    method = _METHODS[described.name]
    return replace(method, name=spec, assign=partial(method.assign, **values)) if values else method


def methods() -> list[Method]:
    """All methods, in the order of `tpcli.config.methods`, those of users last."""
    return [_METHODS[name] for name in METHODS if name in _METHODS]
