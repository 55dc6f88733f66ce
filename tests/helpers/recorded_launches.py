"""What launches a pooling makes, without a card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tpcli.pooling.backends.triton import launch


class Launch(NamedTuple):
    """A kernel, what it was launched with, and how."""

    kernel: Any
    arguments: tuple[Any, ...]
    sizes: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


def launches(call: Callable[[], object]) -> list[Launch]:
    """The launches of `call`, none of which is made."""
    made: list[Launch] = []

    def run(
        kernel: Any, programs: int, *arguments: Any, warps: int = 4, stages: int = 3, **sizes: Any
    ) -> None:
        made.append(Launch(kernel, arguments, sizes, warps, stages))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run", run)
        call()
    return made
