"""Find a model's weights among all that training scripts save around them.

Nothing here knows the names that scripts use: the weights are where the names of most of the
model's own weights end, and what stands before those names is the prefix. EMA averages and teachers
go before what they were made from.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

AVERAGED = re.compile(r"(^|[._])(ema|teacher|averaged?|swa)([._]|$)")
HEAD = re.compile(r"(^|[._])(head|classifier|fc|linear|logits)(\.\d+)?\.$")
DEEPEST = 10
"""Levels of dicts in which weights are looked for."""


@dataclass(frozen=True)
class Found:
    """Weights without wrapping and prefix, and the other tensors of the file, by where they are."""

    weights: dict[str, Tensor]
    beside: dict[str, Tensor] = field(default_factory=dict)


def find_weights(content: Any, names: Collection[str]) -> Found | None:
    """The weights in what a file holds, or None where it holds no tensors by name.

    names: of the model's own weights. Where fewer than half are found the largest dict of tensors
    is taken as it is: names of original releases are translated later.
    """
    dicts = list(_dicts_of_tensors(content))
    if not dicts:
        return None
    places = [(where, prefix, n) for where, state in dicts for prefix, n in _prefixes(state, names)]
    where, prefix, _ = max(
        places, key=lambda p: (p[2], bool(AVERAGED.search(f"{p[0]}.{p[1]}"))), default=(None, "", 0)
    )
    if where is None:
        where = max(dicts, key=lambda d: len(d[1]))[0]
    weights: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for place, state in dicts:
        for key, value in state.items():
            if place == where and key.startswith(prefix):
                weights[key.removeprefix(prefix)] = value
            else:
                beside[f"{place}.{key}".lstrip(".")] = value
    return Found(weights, beside)


def _dicts_of_tensors(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All dicts inside `content` that have tensors by name, each with the keys that lead to it."""
    waiting, seen = deque([("", 0, content)]), set()
    while waiting:
        where, depth, value = waiting.popleft()
        if id(value) in seen or depth > DEEPEST:  # a dict may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            state = {k: v for k, v in value.items() if isinstance(k, str) and _is_tensor(v)}
            if state:
                yield where, state
            inside: Any = value.items()
        elif isinstance(value, list | tuple):
            inside = enumerate(value)
        else:
            continue
        waiting.extend((f"{where}.{key}".lstrip("."), depth + 1, item) for key, item in inside)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _prefixes(state: Mapping[str, Tensor], names: Collection[str]) -> list[tuple[str, int]]:
    """What stands before the model's names in these keys, and before how many of them."""
    count: Counter[str] = Counter()
    for key in state:
        start = 0
        while start >= 0:
            if key[start:] in names:
                count[key[:start]] += 1
            start = key.find(".", start) + 1 or -1
    least = min(len(state), len(names)) / 2
    return [(prefix, n) for prefix, n in count.items() if n >= least]


def adopt_head(
    found: Found, names: Collection[str], name: str, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """The weights, with a head that the file keeps apart from them, if there is no doubt which.

    It is one linear layer on its own, which reads as many channels as the model's head, and is
    called a head or has as many classes.

    names: of the model's own weights. name: of its head. shape: of that head's weight.
    """
    if f"{name}.weight" in found.weights:
        return found.weights
    others = found.beside | {k: v for k, v in found.weights.items() if k not in names}
    layers = [
        key.removesuffix("weight")
        for key, value in others.items()
        if re.search(r"(^|\.)weight$", key) and value.ndim == 2 and value.shape[1] == shape[1]
    ]
    heads = [
        layer
        for layer in layers
        if _stands_alone(layer, others)
        and (HEAD.search(layer) or others[f"{layer}weight"].shape[0] == shape[0])
    ]
    if len(heads) != 1:
        return found.weights
    weights = {k: v for k, v in found.weights.items() if not k.startswith(heads[0])}
    return weights | {f"{name}.{part}": others[heads[0] + part] for part in ("weight", "bias")}


def _stands_alone(layer: str, others: Collection[str]) -> bool:
    """Whether the layer, or the sequence that it is in, has one weight, one bias and no more."""
    whole = re.sub(r"\d+\.$", "", layer)
    return {key for key in others if key.startswith(whole)} == {f"{layer}weight", f"{layer}bias"}
