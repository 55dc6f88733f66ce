"""A model that was lent comes back as it was: pooling, modes, device, also after an exception."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tpcli import data, evaluate, pool
from tpcli.config.options import pooling_options
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import LoadedModel, load
from tpcli.pareto import ModelSource, Point, SweepOptions, SweepProgress, sweep
from tpcli.search import SearchOptions, search
from tpcli.surgery import pooling_spec, unpooled
from tpcli.system.devices import borrowed

SEARCH = SearchOptions(images=8, trials=1, budgets=(0.6,), device="cpu")


@pytest.fixture(scope="module")
def digits(model_folder: Path) -> data.ImageData:
    return data.create("demo", load(str(model_folder)).data_config, limit=8)


@pytest.fixture
def loaded(model_folder: Path) -> LoadedModel:
    return load(str(model_folder))


def look(model: nn.Module) -> tuple[Any, ...]:
    spec = pooling_spec(model)
    modes = {name: m.training for name, m in model.named_modules() if "token_pooling" not in name}
    return spec, modes, {p.device for p in model.parameters()}


def use_evaluate(loaded: LoadedModel, images: data.ImageData, stop: Callable[[], None]) -> None:
    evaluate(loaded.model, images, device="cpu", on_batch=lambda done: stop())


def use_search(loaded: LoadedModel, images: data.ImageData, stop: Callable[[], None]) -> None:
    search(loaded.model, images, pooling_options("ward"), SEARCH, on_trial=lambda done, of: stop())


def use_sweep(loaded: LoadedModel, images: data.ImageData, stop: Callable[[], None]) -> None:
    options = SweepOptions([pooling_options("ward")], budgets=[0.6], run=RunOptions(device="cpu"))
    cache = Path(stop())  # type: ignore[arg-type, func-returns-value]

    class Stopped(SweepProgress):
        def point(self, point: Point) -> None:
            stop()

    sweep([ModelSource(loaded, images)], options, cache, Stopped())


USES = [use_evaluate, use_search, use_sweep]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("is_pooled", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_comes_back_as_it_was(
    loaded: LoadedModel,
    digits: data.ImageData,
    tmp_path: Path,
    use: Callable[..., None],
    is_pooled: bool,
    fails: bool,
) -> None:
    if is_pooled:
        pool(loaded.model, "r:4", "tome")
    loaded.model.train()
    loaded.model.blocks[1].eval()  # type: ignore[index, operator]
    before = look(loaded.model)
    calls = []

    def stop() -> Path:
        calls.append(1)
        if fails and len(calls) == 1 + (use is use_sweep):
            raise ZeroDivisionError
        return tmp_path

    if fails:
        with pytest.raises(ZeroDivisionError):
            use(loaded, digits, stop)
    else:
        use(loaded, digits, stop)
    assert look(loaded.model) == before


def test_an_exception_within_a_forward(
    loaded: LoadedModel, digits: data.ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(loaded.model)

    def fail(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tpcli.search.trials.F.kl_div", fail)
    with pytest.raises(ZeroDivisionError):
        use_search(loaded, digits, lambda: None)
    assert look(loaded.model) == before


def test_what_is_pooled_while_unpooled_goes(loaded: LoadedModel) -> None:
    model = loaded.model
    with unpooled(model):
        pool(model, "r:4")
    assert pooling_spec(model) is None


def test_a_model_goes_back_to_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    places: list[str] = []

    def move(device: torch.device) -> nn.Module:
        places.append(device.type)
        return model

    monkeypatch.setattr(model, "to", move)
    with borrowed(model, torch.device("meta")):
        assert not model.training
    assert model.training
    assert places == ["meta", "cpu"]
