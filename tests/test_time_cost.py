"""Time of schedules from the time of parts, against machines whose law is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.machine import machine
from tests.tiny import tiny_vit
from tpcli.budget import family_chain
from tpcli.forwards import BenchOptions
from tpcli.options import PoolingOptions, pooling_options
from tpcli.stopwatch import Timed, time_parts
from tpcli.surgery import with_place
from tpcli.time_cost import TimeCost, probes


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_vit()


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


@pytest.mark.parametrize("position", ["block", "attention"])
def test_parts_add_up_and_nothing_is_left_behind(model: nn.Module, position: str) -> None:
    before = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    options: PoolingOptions = pooling_options("ward", position=position)
    shares: list[float] = []
    schedule = (64, 40, 40, 20)
    timing = BenchOptions(batch_size=2, device="cpu", seconds=0)
    base, pooled = time_parts(model, options, [schedule], timing, shares.append)
    assert shares[-1] == 1.0
    assert base.total == pytest.approx(1.0)
    assert (base.tokens, pooled.tokens) == ((64,) * 4, schedule)
    assert base.poolings == (0.0,) * 4
    assert min(pooled.poolings[1], pooled.poolings[3]) > pooled.poolings[0] == 0
    for timed in (base, pooled):
        assert sum(timed.blocks) < timed.total
        inner = np.add(timed.mlps, timed.poolings)
        assert (np.array(timed.blocks) > inner).all()
        assert min(timed.mlps) > 0
        assert Timed.from_dict(timed.to_dict()) == timed
    assert {name: len(m._forward_hooks) for name, m in model.named_modules()} == before
    assert not torch.is_inference_mode_enabled()
