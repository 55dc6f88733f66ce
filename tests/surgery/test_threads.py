"""Threads that share a model get their own answers: nothing of a forward is kept on modules."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import VARIANTS, images, tiny_vit
from tpcli import pool, trace, unpool
from tpcli.surgery import PooledTokens
from tpcli.surgery.attention import significance_scores
from tpcli.surgery.state import THREAD

SCHEDULE = [50, 40, 30, 20]
BEIT = {"name": "beit_base_patch16_224"}
RELPOS = {"name": "vit_relpos_small_patch16_224", "class_token": True}
ROPE = {"name": "eva02_tiny_patch14_224"}
NAFLEX = {
    "name": "naflexvit_base_patch16_gap",
    "img_size": None,
    "pretrained_cfg_overlay": {"input_size": (3, 32, 32)},
}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "class token": ({}, {}),
    "queries and keys": ({}, {"weights": "significance", "metric": "keys"}),
    "class attention": ({}, {"weights": "class"}),
    "significance as share": ({}, {"reduce": "significance"}),
    "after the block": ({}, {"metric": "keys", "position": "block"}),
    "side by side": (VARIANTS["ParallelScalingBlock"], {"weights": "significance"}),
    "parallel branches": (VARIANTS["ParallelThingsBlock"], {"metric": "keys"}),
    "wk-medoids": ({}, {"method": "wk-medoids"}),
    "average": ({"global_pool": "avg"}, {}),
    "average and max": ({"global_pool": "avgmax"}, {}),
    "map": ({"global_pool": "map"}, {}),
    "prr": ({"global_pool": "prr"}, {}),
    "rotary": (ROPE, {"weights": "significance"}),
    "Beit": (BEIT, {}),
    "relative positions": (RELPOS, {"weights": "significance"}),
    "relative positions, average": ({**RELPOS, "global_pool": "avg"}, {"position": "block"}),
    "naflex": (NAFLEX, {"metric": "keys"}),
}


def build(case: str) -> nn.Module:
    arguments, options = CASES[case]
    arguments = {k: v for k, v in arguments.items() if v is not None}
    if "naflex" in arguments.get("name", ""):
        from tests.helpers import architectures as zoo

        return pool(zoo.small(arguments["name"]), [30, 20, 10], **options)
    return pool(tiny_vit(**arguments), SCHEDULE, **options)


def size(model: nn.Module) -> int:
    return 48 if type(model).__name__ == "NaFlexVit" else 32


class Turns:
    """Two threads that take turns at every module, so that each writes before the other reads."""

    def __init__(self, model: nn.Module) -> None:
        self.barrier = threading.Barrier(2)
        self.handles = [
            register(self.meet)
            for module in model.modules()
            for register in (module.register_forward_pre_hook, module.register_forward_hook)
        ]

    def meet(self, *_: object) -> None:
        self.barrier.wait(60)

    def run(self, work: Callable[[int], Tensor]) -> list[Tensor | Exception]:
        results: list[Tensor | Exception] = [RuntimeError("did not end")] * 2

        def one(i: int) -> None:
            try:
                with torch.no_grad():
                    results[i] = work(i)
            except Exception as error:
                results[i] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for handle in self.handles:
            handle.remove()
        return results


@pytest.mark.parametrize("case", CASES)
def test_each_thread_gets_its_own_answer(case: str) -> None:
    model = build(case)
    batches = [images(2, seed=seed, size=size(model)) for seed in (1, 2)]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    for got, own in zip(Turns(model).run(lambda i: model(batches[i])), expected, strict=True):
        assert not isinstance(got, Exception), got
        torch.testing.assert_close(got, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["queries and keys", "Beit", "average"])
def test_threads_of_different_batch_sizes(case: str) -> None:
    model = build(case)
    batches = [images(1, seed=1), images(3, seed=2)]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
    for got, own in zip(Turns(model).run(lambda i: model(batches[i])), expected, strict=True):
        assert not isinstance(got, Exception), got
        torch.testing.assert_close(got, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["class token", "relative positions"])
def test_scores_of_two_threads(case: str) -> None:
    model = unpool(build(case))
    batches = [images(2, seed=seed) for seed in (1, 2)]
    expected = [significance_scores(model, batch) for batch in batches]
    turns = Turns(model)
    for got, own in zip(
        turns.run(lambda i: significance_scores(model, batches[i])), expected, strict=True
    ):
        assert not isinstance(got, Exception), got
        torch.testing.assert_close(got, own)


def test_a_trace_sees_its_own_thread_only() -> None:
    model = build("class token")
    batches = [images(2, seed=seed) for seed in (1, 2)]
    sources: list[list[Tensor]] = [[], []]

    def work(i: int) -> Tensor:
        with trace(model) as record:
            out: Tensor = model(batches[i])
        sources[i] = record.sources
        return out

    with torch.no_grad():
        work(0), work(1)
    expected, sources = sources, [[], []]
    Turns(model).run(work)
    for own, got in zip(expected, sources, strict=True):
        assert len(got) == len(own) == 4
        assert all(torch.equal(a, b) for a, b in zip(own, got, strict=True))


def test_an_untraced_thread_beside_a_traced_one() -> None:
    model = build("class token")
    traces: list[int] = []

    def work(i: int) -> Tensor:
        if i:
            return model(images())
        with trace(model) as record:
            out: Tensor = model(images())
        traces.append(len(record.assignments))
        return out

    Turns(model).run(work)
    assert traces == [4]


class Kept(pickle.Pickler):
    """All tensors that can be reached from a model, but its parameters and buffers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(io.BytesIO())
        self.own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.found: list[Tensor] = []
        self.dump(model)

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Tensor) and value.data_ptr() not in self.own:
            self.found.append(value)
        return NotImplemented


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_on_the_model_or_the_thread(case: str) -> None:
    model = build(case)
    model(images(size=size(model)))
    assert Kept(model).found == []
    assert THREAD.block is None
    assert not THREAD.recorded


def test_tensors_that_are_kept_are_found() -> None:
    model = build("relative positions")
    sizes = torch.ones(2, 9)
    model.blocks[1].attn.rel_pos.attending = [{"a": PooledTokens(torch.ones(1), sizes)}]
    model.blocks[1].token_pooling.keys = sizes
    assert len(Kept(model).found) == 2


def test_an_exception_in_a_block_leaves_nothing_behind() -> None:
    model = build("queries and keys")
    batch = images()
    with torch.no_grad():
        expected = model(batch)

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    handle = model.blocks[1].attn.proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        model(batch)
    handle.remove()
    assert THREAD.block is None
    with torch.no_grad():
        assert torch.equal(model(batch), expected)
