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
from tpcli.schedules.flops_cost import sharing_weights
from tpcli.surgery import PoolingSpec, TokenPooling, insert, unpool
from tpcli.surgery.geometry import patch_tokens
from tpcli.system.devices import pick_device, synchronize

from .clock import BenchOptions, forward, random_images, shuffled_rounds, timing_setup

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class PartTimes:
    """One schedule's forward, in shares of the unpooled one of the same round.

    total: all of it. blocks, mlps, poolings: for each block its whole, its MLP and its pooling; 0
    where there is none.
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
    def from_dict(cls, values: dict[str, Any]) -> PartTimes:
        """What `to_dict` gave, from JSON."""
        parts = (tuple(values[name]) for name in ("blocks", "mlps", "poolings"))
        return cls(tuple(values["tokens"]), values["total"], *parts)


def time_parts(
    model: nn.Module,
    pooling: PoolingOptions,
    schedules: Sequence[Tokens],
    options: BenchOptions,
    on_round: Callable[[float], None] | None = None,
) -> list[PartTimes]:
    """Time the unpooled model and each of `schedules`, in turn, for `options.seconds`.

    Each figure is the median of its ratios to the unpooled forward of the same round. Hook overhead
    is estimated from forwards without hooks and subtracted. Nothing is compiled: a compiled graph
    has no parts.

    Args:
        on_round: called with the share of the time that has passed.

    Raises:
        UserError: the device is missing, or its memory runs out; names the batch size to try.
    """
    device = pick_device(options.device)
    base = unpool(copy.deepcopy(model)).to(device).eval()
    images = random_images(base, options, device)
    versions = [base, *(_pooled(base, tokens, pooling) for tokens in schedules)]
    rounds: list[list[_Forward]] = []
    with timing_setup(options):
        for version in versions:
            forward(version, images, options)
        # each version twice, without hooks and with them
        for order in shuffled_rounds(2 * len(versions), options.seconds, LEAST_ROUNDS, on_round):
            totals, hooked = [0.0] * len(versions), [_NOTHING] * len(versions)
            for i in order:
                number, has_hooks = divmod(i, 2)
                if has_hooks:
                    hooked[number] = _hooked(versions[number], images, options)
                else:
                    totals[number] = _plain(versions[number], images, options)
            rounds.append([_Forward(t, *h) for t, h in zip(totals, hooked, strict=True)])
    unpooled = (patch_tokens(base),) * len(rounds[0][0].blocks)
    wanted = [unpooled, *schedules]
    return [_median(tokens, rounds, version) for version, tokens in enumerate(wanted)]


def _pooled(base: nn.Module, tokens: Tokens, pooling: PoolingOptions) -> nn.Module:
    schedule = Schedule(tokens, patch_tokens(base))
    return insert(sharing_weights(base), PoolingSpec(schedule, pooling))


class _Parts(NamedTuple):
    """Seconds of a forward with hooks, and of its parts."""

    hooked: float
    blocks: tuple[float, ...]
    mlps: tuple[float, ...]
    poolings: tuple[float, ...]


_NOTHING = _Parts(0.0, (), (), ())


class _Forward(NamedTuple):
    """Seconds of a forward without hooks, and `_Parts` of one with them."""

    total: float
    hooked: float
    blocks: tuple[float, ...]
    mlps: tuple[float, ...]
    poolings: tuple[float, ...]


def _median(tokens: Tokens, rounds: Sequence[Sequence[_Forward]], version: int) -> PartTimes:
    """One version over all rounds, in shares of the first version's total."""
    base = np.array([each[0].total for each in rounds])

    def share(name: str) -> Any:
        values = np.array([getattr(each[version], name) for each in rounds])
        return np.median((values.T / base).T, axis=0)

    total, mlps, poolings = float(share("total")), share("mlps"), share("poolings")
    rest = np.maximum(share("blocks") - mlps - poolings, 0)
    inside = (mlps > 0).astype(int) + (poolings > 0)  # hooked parts inside each block
    overhead = max(0.0, float(share("hooked")) - total) / (len(inside) + inside.sum())
    blocks = mlps + poolings + np.maximum(rest - overhead * inside, rest / 2)
    return PartTimes(tokens, total, *(tuple(map(float, part)) for part in (blocks, mlps, poolings)))


def _plain(model: nn.Module, images: Tensor, options: BenchOptions) -> float:
    """Seconds of a forward without hooks."""
    stamps = _Stamps(images.device)
    first, last = stamps.around(lambda: forward(model, images, options))
    synchronize(images.device)
    return stamps.between(first, last)


def _hooked(model: nn.Module, images: Tensor, options: BenchOptions) -> _Parts:
    """Seconds of a forward with hooks, and of its parts."""
    blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
    mlps = [getattr(block, "mlp", None) for block in blocks]
    poolings = [
        next((m for m in block.modules() if isinstance(m, TokenPooling)), None) for block in blocks
    ]
    stamps = _Stamps(images.device)
    with stamps.on([*blocks, *mlps, *poolings]):
        first, last = stamps.around(lambda: forward(model, images, options))
    synchronize(images.device)
    kinds = ([stamps.inside(module) for module in kind] for kind in (blocks, mlps, poolings))
    return _Parts(stamps.between(first, last), *map(tuple, kinds))


class _Stamps:
    """Times before and after modules; on CUDA devices by their own clock, without waiting."""

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

    def around(self, call: Callable[[], object]) -> tuple[Any, Any]:
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

    def inside(self, module: nn.Module | None) -> float:
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
