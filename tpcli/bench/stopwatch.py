"""How long each part of a forward pass takes: blocks, their MLPs and their poolings."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tpcli.config.options import PoolingOptions
from tpcli.config.schedule import Schedule, Tokens
from tpcli.evaluation.run import floating_dtype
from tpcli.schedules.flops_cost import sharing_weights
from tpcli.surgery import PoolingSpec, TokenPooling, insert, unpool
from tpcli.surgery.geometry import input_size, patch_tokens
from tpcli.system.devices import explain_out_of_memory, pick_device, synchronize

from .clock import BenchOptions, forward, kept_heap, passed

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Timed:
    """One schedule's forward, in shares of the unpooled one that was timed right beside it.

    total: the whole of it. blocks, mlps, poolings: for each block, what all of it takes, its MLP
    and its pooling; 0 where there is none.
    """

    tokens: Tokens
    total: float
    blocks: tuple[float, ...]
    mlps: tuple[float, ...]
    poolings: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Timed:
        """What `to_dict` gave, from JSON."""
        parts = (tuple(values[name]) for name in ("blocks", "mlps", "poolings"))
        return cls(tuple(values["tokens"]), values["total"], *parts)


def time_parts(
    model: nn.Module,
    pooling: PoolingOptions,
    schedules: Sequence[Tokens],
    options: BenchOptions,
    on_round: Callable[[float], None] | None = None,
) -> list[Timed]:
    """Time the unpooled model and each of `schedules`, in turn, for `options.seconds`.

    Each figure is the median of its ratios to the unpooled forward of the same round, as the
    machine's speed drifts. What watching the parts takes is measured, by forwards that nobody
    watches, and taken off. Nothing is compiled: parts can't be told apart in a compiled graph.

    Args:
        on_round: called with the share of the time that has passed.

    Raises:
        UserError: the device is not there, or its memory runs out (says the batch size to try).
    """
    device = pick_device(options.device)
    base = unpool(copy.deepcopy(model)).to(device).eval()
    size, dtype = input_size(base), floating_dtype(base)
    images = torch.randn(options.batch_size, *size, device=device, dtype=dtype)
    versions = [base, *(_pooled(base, tokens, pooling) for tokens in schedules)]
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads or threads)
    rounds: list[list[_Forward]] = []
    try:
        with kept_heap(), torch.inference_mode(), explain_out_of_memory(options.batch_size):
            for version in versions:
                forward(version, images, options)
            began = time.perf_counter()
            while len(rounds) < LEAST_ROUNDS or time.perf_counter() - began < options.seconds:
                rounds.append([_timed(version, images, options) for version in versions])
                if on_round is not None:
                    on_round(passed(began, options.seconds))
    finally:
        torch.set_num_threads(threads)
    unpooled = (patch_tokens(base),) * len(rounds[0][0].blocks)
    wanted = [unpooled, *schedules]
    return [_median(tokens, rounds, version) for version, tokens in enumerate(wanted)]


def _pooled(base: nn.Module, tokens: Tokens, pooling: PoolingOptions) -> nn.Module:
    schedule = Schedule(tokens, patch_tokens(base))
    return insert(sharing_weights(base), PoolingSpec(schedule, pooling))


class _Forward(NamedTuple):
    """Seconds of a forward that nobody watches, of one that is watched, and of that one's parts."""

    total: float
    watched: float
    blocks: tuple[float, ...]
    mlps: tuple[float, ...]
    poolings: tuple[float, ...]


def _median(tokens: Tokens, rounds: Sequence[Sequence[_Forward]], version: int) -> Timed:
    """One version over all rounds, in shares of the first version's total."""
    base = np.array([each[0].total for each in rounds])

    def share(name: str) -> Any:
        values = np.array([getattr(each[version], name) for each in rounds])
        return np.median((values.T / base).T, axis=0)

    total, mlps, poolings = float(share("total")), share("mlps"), share("poolings")
    rest = np.maximum(share("blocks") - mlps - poolings, 0)
    inside = (mlps > 0).astype(int) + (poolings > 0)  # parts that are watched inside each block
    watching = max(0.0, float(share("watched")) - total) / (len(inside) + inside.sum())
    blocks = mlps + poolings + np.maximum(rest - watching * inside, rest / 2)
    return Timed(tokens, total, *(tuple(map(float, part)) for part in (blocks, mlps, poolings)))


def _timed(model: nn.Module, images: Tensor, options: BenchOptions) -> _Forward:
    """Two forwards, in seconds."""
    blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
    mlps = [getattr(block, "mlp", None) for block in blocks]
    poolings = [
        next((m for m in block.modules() if isinstance(m, TokenPooling)), None) for block in blocks
    ]
    alone, watch = _Watch(images.device), _Watch(images.device)
    total = alone.time(lambda: forward(model, images, options))
    with watch.on([*blocks, *mlps, *poolings]):
        watched = watch.time(lambda: forward(model, images, options))
    synchronize(images.device)
    taken = [watch.taken(module) for module in (*blocks, *mlps, *poolings)]
    depth = len(blocks)
    parts = (tuple(taken[i * depth : (i + 1) * depth]) for i in range(3))
    return _Forward(alone.between(*total), watch.between(*watched), *parts)


class _Watch:
    """Stamps before and after modules; on CUDA devices on their own clock, so nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stamps: dict[nn.Module, list[Any]] = {}

    def now(self) -> Any:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        synchronize(self._device)
        return time.perf_counter()

    def time(self, call: Callable[[], object]) -> tuple[Any, Any]:
        """Stamps before and after a call."""
        synchronize(self._device)
        began = self.now()
        call()
        return began, self.now()

    def between(self, first: Any, last: Any) -> float:
        """Seconds."""
        if self._device.type == "cuda":
            return float(first.elapsed_time(last)) / 1000
        return float(last - first)

    def taken(self, module: nn.Module | None) -> float:
        """Seconds inside a module; 0 where there is none."""
        stamps = self._stamps.get(module, []) if module is not None else []
        return sum(self.between(*pair) for pair in zip(stamps[::2], stamps[1::2], strict=True))

    @contextmanager
    def on(self, modules: Sequence[nn.Module | None]) -> Iterator[None]:
        hooks = []
        for module in modules:
            if module is not None:
                hooks.append(module.register_forward_pre_hook(self._stamp))
                hooks.append(module.register_forward_hook(self._stamp))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _stamp(self, module: nn.Module, *_: Any) -> None:
        self._stamps.setdefault(module, []).append(self.now())
