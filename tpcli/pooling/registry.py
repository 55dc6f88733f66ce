"""Methods by name. A new method is one module that calls `register`; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

from torch import Tensor

from tpcli.errors import UserError, did_you_mean

OPTIONS = ("metric", "metric_dim", "weights", "start", "reduce", "iterations")
"""Pooling options that a method may take or not; position and proportional attention suit all."""

KEYWORDS = ("weights", "sizes", "start", "iterations", "grid", "depth", "normalized")
"""What an operator may ask to be called with, beside the metric and K."""


class Assignment(NamedTuple):
    """What a method decides: who goes with whom, and optionally who speaks for the cluster.

    labels: (B, N) cluster of each token, integers in [0, N); exactly K distinct ones per sample.
    medoids: (B, N) bool, one True per cluster; None where the method has no such token.
    shares: (B, N) how much each token counts in its cluster's mean, where the method itself says
    so; None leaves it to the reduce option. A token with share 0 is dropped: it adds nothing to the
    features nor to the size of its cluster, and its label only says where it was.
    """

    labels: Tensor
    medoids: Tensor | None = None
    shares: Tensor | None = None


Assign = Callable[..., Assignment]
"""assign(z, k, **keywords) -> Assignment, all float32, without gradient.

z: (B, N, D) what distances are measured on; k: clusters, 1 <= k < N. The keywords are those of
KEYWORDS that the method takes, and its own parameters. weights, sizes: (B, N). grid: (H, W), the
model's patch grid. depth: share of the blocks that lie before this one, in [0, 1). normalized: the
metric is z after a layer norm, which is left to the method that takes this keyword: it may need
only some tokens.
"""


@dataclass(frozen=True)
class Parameter:
    """A parameter of one method, written behind its name: `atc:linkage=complete`.

    choices: accepted words; None for a number, which is at least `minimum` and of default's type.
    """

    name: str
    default: str | int | float
    summary: str
    choices: tuple[str, ...] | None = None
    minimum: float = 0

    def parse(self, text: str, method: str) -> str | int | float:
        """The value that `text` stands for.

        Raises:
            UserError: it is not among those accepted.
        """
        if self.choices is not None:
            if text not in self.choices:
                raise UserError(
                    f"{self.name} {text!r} of method {method} is unknown; "
                    f"use one of {', '.join(self.choices)}."
                )
            return text
        try:
            value = type(self.default)(text)
            valid = self.minimum <= value < float("inf")  # type: ignore[operator]
        except ValueError:
            valid = False
        if not valid:
            kind = "whole number" if isinstance(self.default, int) else "number"
            raise UserError(
                f"{self.name} {text!r} of method {method} can't be used; "
                f"give a {kind} of {self.minimum:g} or more."
            )
        return value


@dataclass(frozen=True)
class Method:
    """A way to turn N tokens into K.

    name: what the user types. summary: one line. paper: where it is from.
    assign: the operator. defaults: pooling options that this method prefers over the general ones.
    takes: names from OPTIONS and KEYWORDS: the options that have an effect on it, and what
    `assign` is called with. weights: accepted values of the option of that name, None for all.
    parameters: its own, which no other method has.
    counts: (N, grid) -> the K that N tokens can become, where not all can.
    """

    name: str
    summary: str
    paper: str
    assign: Assign
    defaults: Mapping[str, object] = field(default_factory=dict)
    takes: tuple[str, ...] = (*OPTIONS, "sizes")
    weights: tuple[str, ...] | None = None
    parameters: tuple[Parameter, ...] = ()
    counts: Callable[[int, tuple[int, int]], Sequence[int]] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The pooling options that have an effect on this method."""
        taken = tuple(name for name in OPTIONS if name in self.takes)
        return (*taken, "position", "proportional_attention")

    @cached_property
    def keywords(self) -> tuple[str, ...]:
        """What `assign` is called with, beside z and k."""
        return tuple(name for name in KEYWORDS if name in self.takes)

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
    _METHODS[method.name] = method
    return method


def get_method(spec: str) -> Method:
    """The method of that name; parameters may follow it: `atc:linkage=complete`.

    Raises:
        UserError: there is none, or it has no such parameter; the message lists those there are.
    """
    name, *items = spec.split(":")
    if name not in _METHODS:
        known = ", ".join(_METHODS)
        near = did_you_mean(name, _METHODS)
        raise UserError(f"method {name!r} is unknown; use one of {known}.{near}")
    method = _METHODS[name]
    if not items:
        return method
    known_parameters = {parameter.name: parameter for parameter in method.parameters}
    values: dict[str, object] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or key not in known_parameters:
            own = ", ".join(f"{name}:{p.name}={p.default}" for p in method.parameters)
            raise UserError(
                f"{item!r} is no parameter of method {name}; "
                + (f"write it like {own}." if own else "it has none, so leave it out.")
            )
        values[key] = known_parameters[key].parse(text, name)
    return replace(method, name=spec, assign=partial(method.assign, **values))


def methods() -> list[Method]:
    """All methods, in the order in which they were registered."""
    return list(_METHODS.values())
