"""Where kernels run: on a card, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tpcli.pooling.backends import c as c_kernels
from tpcli.pooling.backends import triton


@pytest.fixture(scope="session")
def device() -> str:
    """What the kernels take tensors of."""
    if not triton.AVAILABLE:
        pytest.skip("Triton is not installed")
    if triton.INTERPRETED:
        _mend_dot()
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; TRITON_INTERPRET=1 runs these tests without one")
    return "cuda"


@pytest.fixture(autouse=True)
def _kernels_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No loops in C; and a kernel that fails is not passed over in silence."""
    monkeypatch.setattr(c_kernels, "kernels", None)
    yield
    failed = set(triton.switched_off)
    triton.switched_off.clear()
    assert not failed


def _mend_dot() -> None:
    """The interpreter multiplies the bits of bfloat16 numbers, as integers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    plain = InterpreterBuilder.create_dot
    if plain.__name__ == "mended":
        return

    def mended(self, a, b, d, *options):  # type: ignore[no-untyped-def]
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return plain(self, a, b, d, *options)

    InterpreterBuilder.create_dot = mended
