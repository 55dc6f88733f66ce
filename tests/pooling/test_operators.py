"""How many operators a pooling is made of, where no loops or kernels stand in for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tpcli import pool
from tpcli.pooling.backends import c as c_kernels
from tpcli.surgery import TokenPooling


class Counter(TorchDispatchMode):
    """Operators that compute, each a launch on a GPU, and those that only look at memory anew."""

    def __init__(self) -> None:
        super().__init__()
        self.computing, self.views = 0, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.views += function.is_view
        self.computing += not function.is_view
        return function(*args, **(kwargs or {}))


def counted(model: nn.Module) -> list[tuple[int, int]]:
    """(computing, views) in the forward of each pooling layer."""
    counts = []

    def forward(layer: TokenPooling, *args: Any) -> Any:
        with Counter() as counter:
            out = TokenPooling.forward(layer, *args)
        counts.append((counter.computing, counter.views))
        return out

    for layer in model.modules():
        if isinstance(layer, TokenPooling):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    return counts


@pytest.fixture(scope="module")
def deit_small() -> nn.Module:
    """The first blocks of DeiT-S: 196 patch tokens of 384 channels."""
    return timm.create_model("deit_small_patch16_224", depth=2).eval()


@pytest.mark.parametrize(
    ("method", "tokens", "computing", "views"),
    [
        # as measured; the first pooling of a model makes sizes, which is one
        ("ward", [183, 170], [61, 60], 40),
        ("ward", [137, 137], [108], 58),  # two rounds
        ("tome", [183, 170], [40, 39], 27),
        ("k-medoids", [183, 170], [157, 156], 67),
    ],
)
def test_operators_of_a_pooling(
    deit_small: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    tokens: list[int],
    computing: list[int],
    views: int,
) -> None:
    monkeypatch.setattr(c_kernels, "kernels", None)
    counts = counted(pool(deit_small, tokens, method))
    for (computes, looks), bound in zip((c for c in counts if sum(c) > 5), computing, strict=True):
        assert computes <= bound
        assert looks <= views
