"""The clock: its conditions, its turns, and a heap that is kept."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.helpers.models import tiny_vit
from tpcli.bench.clock import (
    BenchOptions,
    interleaved,
    kept_heap,
    random_images,
    shuffled_rounds,
    timing_setup,
)

MEGABYTES = 48


def faults() -> tuple[float, float]:
    """Page faults of a large allocation, outside and inside."""
    import resource

    def each(call: Callable[[], object]) -> float:
        for _ in range(20):  # until pieces of the heap have come together
            call()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            call()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

    def work() -> None:
        torch.empty(MEGABYTES * 2**18).fill_(1.0)

    outside = each(work)
    with kept_heap():
        return outside, each(work)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator only")
def test_pages_are_kept_while_something_is_timed() -> None:
    """In a process of its own: another test may have left the heap large."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        outside, inside = fresh.submit(faults).result()
    assert outside > 100
    assert inside < 10


def test_rounds_are_shuffled_the_same_way_each_time() -> None:
    shares: list[float] = []
    rounds = list(shuffled_rounds(6, 0.0, 40, shares.append))
    assert all(sorted(order) == list(range(6)) for order in rounds)
    assert rounds == list(shuffled_rounds(6, 0.0, 40))
    assert len(shares) == 40
    for position in range(6):  # each version comes first, and last, now and then
        assert {order[position] for order in rounds} == set(range(6))


def test_each_version_is_timed_in_its_own_column() -> None:
    called: list[int] = []

    def version(number: int) -> Callable[[Tensor], Tensor]:
        def call(images: Tensor) -> Tensor:
            called.append(number)
            return images

        return call

    options = BenchOptions(1, "cpu", seconds=0)
    seconds = interleaved([version(i) for i in range(3)], torch.zeros(1), options)
    assert seconds.shape == (5, 3)
    assert (seconds > 0).all()
    assert called[:6] == [0, 0, 1, 1, 2, 2]
    assert [sorted(called[i : i + 3]) for i in range(6, len(called), 3)] == [[0, 1, 2]] * 5


def test_everything_is_timed_under_one_setup() -> None:
    model, before = tiny_vit(), torch.get_num_threads()
    with timing_setup(BenchOptions(1, "cpu", threads=before + 1)):
        assert torch.get_num_threads() == before + 1
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()
    images = random_images(model.double(), BenchOptions(3, "cpu"), torch.device("cpu"))
    assert (images.shape[0], images.dtype) == (3, torch.float64)
