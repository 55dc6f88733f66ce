"""A GPU that only Triton's host code sees: kernels are compiled for it, and never run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import triton as backend


class Started(NamedTuple):
    """A kernel that was started: its name, on how many programs, and with which arguments."""

    name: str
    programs: int
    arguments: tuple[Any, ...]


class FakeDriver:
    """What Triton asks of a driver, answered for an H100; `started` are the launches so far."""

    def __init__(self) -> None:
        self.started: list[Started] = []
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def start(x: int, y: int, z: int, stream: int, function: int, *others: Any) -> None:
            self.started.append(Started(metadata.name, x, others[4:]))

        return start

    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024

    def unload_module(self, *arguments: Any) -> None:
        pass

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def forget_compiled() -> None:
    """Drop the kernels that were compiled, each of which remembers its driver."""
    from tpcli.pooling.backends.triton import kernels, launch

    for recipe in (launch.ward_recipe, launch.number_recipe, launch.means_recipe):
        recipe.cache_clear()
    for kernel in vars(kernels).values():
        if isinstance(kernel, triton.JITFunction):
            kernel.device_caches.clear()


@contextmanager
def fake_gpu() -> Iterator[FakeDriver]:
    """Tensors of the CPU are taken for those of a GPU; results of kernels are not written."""
    driver, config = FakeDriver(), triton.runtime.driver
    before = config._active
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "DEVICES", ("cpu",))
        patch.setattr(backend, "_checked", {torch.device("cpu")})
        patch.setattr(backend, "switched_off", set())
        patch.setattr(c_kernels, "kernels", None)
        config.set_active(driver)
        forget_compiled()
        try:
            yield driver
        finally:
            config._active = before
            forget_compiled()
