"""The launches that a pooling makes, without a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tpcli.pooling.backends.triton import launch


class Recorded(NamedTuple):
    """A launch, and the tensors that it is given."""

    launch: launch.Launch
    tensors: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return self.launch.name

    def dtype_of(self, argument: object) -> torch.dtype | None:
        """Of what an argument points at; None for a number."""
        if isinstance(argument, launch.Given):
            return self.tensors[argument].dtype
        return argument.dtype if isinstance(argument, launch.Room) else None


def launches(call: Callable[[], object]) -> list[Recorded]:
    """The launches of `call`, none of which is made."""
    made: list[Recorded] = []

    def run(recipe: launch.Recipe, tensors: Sequence[Tensor]) -> None:
        made.extend(Recorded(one, tuple(tensors)) for one in recipe.launches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", run)
        call()
    return made
