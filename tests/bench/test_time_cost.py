"""Time of schedules from the time of parts, against machines whose law is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.machines import machine
from tests.helpers.models import tiny_vit
from tpcli.bench.clock import BenchOptions
from tpcli.bench.stopwatch import PartTimes, time_parts
from tpcli.bench.time_cost import TimeCost, probes
from tpcli.config.options import pooling_options
from tpcli.config.schedule import Tokens
from tpcli.schedules.budget import family_chain
from tpcli.surgery import with_place


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_vit()


@pytest.mark.long
@pytest.mark.parametrize("position", ["block", "attention"])
@pytest.mark.parametrize("stepped", [False, True], ids=["smooth", "in steps"])
def test_forecasts_are_those_of_the_machine(model: nn.Module, position: str, stepped: bool) -> None:
    def attention(n: int) -> float:
        return 1 + 16 * -(-n // 16) * 0.05 if stepped else 1 + 0.02 * n + 1e-3 * n * n

    def mlp(n: int) -> float:
        return 0.5 + 0.1 * n

    options = pooling_options("ward", position=position)
    inside = position == "attention"
    timed = [machine(t, attention, mlp, inside) for t in ((64,) * 4, *probes(model, options))]
    cost = TimeCost(model, options, timed)
    chain = family_chain(cost)[:: 1 + len(family_chain(cost)) // 50]
    wanted = [machine(tokens, attention, mlp, inside).total for tokens in chain]
    assert cost.estimates(chain) == pytest.approx(np.array(wanted), rel=0.08 if stepped else 0.03)
    assert cost.estimate((64,) * 4) == pytest.approx(1.0)


def test_sizes_may_make_fewer_tokens_slower(model: nn.Module) -> None:
    def attention(n: int) -> float:
        return 1 + 0.001 * n

    options = pooling_options("ward", position="attention")
    wanted = ((64,) * 4, *probes(model, options))
    cost = TimeCost(
        model, options, [machine(t, attention, attention, True, sizes=0.3) for t in wanted]
    )
    for tokens in ((64,) * 4, (64, 40, 40, 20), (60, 50, 40, 30)):
        truth = machine(tokens, attention, attention, True, sizes=0.3).total
        assert cost.estimate(tokens) == pytest.approx(truth, rel=0.02)


def test_a_model_of_one_block(model: nn.Module) -> None:
    shallow = tiny_vit(depth=1)
    options = pooling_options("ward", position="attention")
    wanted = ((64,), *probes(shallow, options))
    cost = TimeCost(shallow, options, [machine(t, float, float, True) for t in wanted])
    assert cost.estimate((64,)) == pytest.approx(1.0)
    assert cost.estimate((8,)) < cost.estimate((48,))


@pytest.mark.parametrize("method", ["ward", "tome"])
def test_probes_are_schedules_of_all_strengths(model: nn.Module, method: str) -> None:
    options = with_place(model, pooling_options(method))
    last = {tokens[-1] for tokens in probes(model, options)}
    assert min(last) <= 8
    assert max(last) >= 40
    assert (64,) * 4 not in probes(model, options)


class Clock(TorchDispatchMode):
    """Time that passes by 1 with each operator, and by `look` with each look at the clock."""

    def __init__(self, look: float = 0.0) -> None:
        super().__init__()
        self.now, self.look = 0.0, look

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.now += 1
        return function(*args, **(kwargs or {}))

    def read(self) -> float:
        self.now += self.look
        return self.now


def parts(
    model: nn.Module, schedule: Tokens, position: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> list[PartTimes]:
    """`time_parts` by this clock, which tells its progress to the end."""
    shares: list[float] = []
    monkeypatch.setattr("time.perf_counter", clock.read)
    timing = BenchOptions(batch_size=2, device="cpu", seconds=0)
    options = pooling_options("ward", position=position)
    with clock:
        found = time_parts(model, options, [schedule], timing, shares.append)
    assert shares[-1] == 1.0
    return found


def test_hook_overhead_is_subtracted(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = (64, 40, 40, 20)
    truth = parts(model, schedule, "attention", Clock(), monkeypatch)
    found = parts(model, schedule, "attention", Clock(look=0.5), monkeypatch)
    for one, other in zip(found, truth, strict=True):
        assert one.blocks == pytest.approx(other.blocks, rel=0.04)


@pytest.mark.parametrize("position", ["block", "attention"])
def test_parts_add_up_and_nothing_is_left_behind(
    model: nn.Module, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    schedule = (64, 40, 40, 20)
    base, pooled = parts(model, schedule, position, Clock(), monkeypatch)
    assert base.total == pytest.approx(1.0)
    assert (base.tokens, pooled.tokens) == ((64,) * 4, schedule)
    assert base.poolings == (0.0,) * 4
    assert min(pooled.poolings[1], pooled.poolings[3]) > pooled.poolings[0] == 0
    for timed in (base, pooled):
        assert sum(timed.blocks) < timed.total
        inner = np.add(timed.mlps, timed.poolings)
        assert (np.array(timed.blocks) > inner).all()
        assert min(timed.mlps) > 0
        assert PartTimes.from_dict(timed.to_dict()) == timed
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == before
    assert not torch.is_inference_mode_enabled()
