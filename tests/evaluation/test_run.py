"""Accuracy, loss and interval against plain code; what happens when images or memory fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import Tensor, nn

from tests.helpers.images import CLASSES, class_folders, truncate
from tests.helpers.models import tiny_vit
from tpcli import evaluate, load, pool
from tpcli.data import ImageData, create
from tpcli.errors import TpcliError, UserError
from tpcli.stats import wilson_interval
from tpcli.system.devices import pick_device


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "set", per_class=6, suffix="jpg")


def data_config(model: nn.Module) -> dict[str, Any]:
    return resolve_data_config({"input_size": (3, 32, 32)}, model=model)


def open_data(model: nn.Module, folder: Path, **options: Any) -> ImageData:
    return create(str(folder), data_config(model), **options)


def timm_loop(model: nn.Module, folder: Path) -> tuple[Tensor, Tensor]:
    """Logits and targets as anybody would compute them with timm alone."""
    config = data_config(model)
    dataset = create_dataset("", root=str(folder), search_split=False)
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=7,
        use_prefetcher=False,
        num_workers=0,
        **{k: config[k] for k in ("interpolation", "mean", "std", "crop_pct", "crop_mode")},
    )
    with torch.no_grad():
        pairs = [(model.eval()(images), targets) for images, targets in loader]
    return torch.cat([x for x, _ in pairs]), torch.cat([t for _, t in pairs])


@pytest.mark.parametrize("schedule", ["none", "r:10"])
@pytest.mark.parametrize("batch_size", [1, 7, 60, 128])
def test_equals_a_timm_loop_to_the_image(folder: Path, schedule: str, batch_size: int) -> None:
    model = pool(tiny_vit(), schedule)
    logits, targets = timm_loop(model, folder)
    result = evaluate(model, open_data(model, folder), batch_size=batch_size, device="cpu")
    best = logits.topk(5).indices == targets[:, None]
    assert result.count == 60
    assert result.correct.tolist() == best[:, 0].tolist()
    assert result.top1 == pytest.approx(100 * best[:, 0].double().mean().item())
    assert result.top5 == pytest.approx(100 * best.any(1).double().mean().item())
    assert result.loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-4)
    assert 0 < result.top1 < result.top5, "a model that is never right would prove nothing"
    assert result.images_per_second > 0
    assert result.unreadable == ()


def test_unreadable_images_are_named_counted_and_left_out(folder: Path) -> None:
    model = tiny_vit()
    whole = evaluate(model, open_data(model, folder), device="cpu")
    truncate(folder / "class_2" / "3.jpg")
    (folder / "class_9" / "5.jpg").write_bytes(b"no image")
    result = evaluate(model, open_data(model, folder), batch_size=7, device="cpu")
    assert result.unreadable == ("class_2/3.jpg", "class_9/5.jpg")
    assert result.count == 58
    kept = np.delete(whole.correct, [2 * 6 + 3, 59])
    assert np.array_equal(result.correct, kept)
    assert result.top1 == pytest.approx(100 * kept.mean())


def test_a_batch_of_unreadable_images_only(folder: Path) -> None:
    for i in range(6):
        truncate(folder / "class_4" / f"{i}.jpg")
    model = tiny_vit()
    result = evaluate(model, open_data(model, folder), batch_size=6, device="cpu")
    assert result.count == 54
    assert len(result.unreadable) == 6


def test_strict_stops_at_the_first(folder: Path) -> None:
    truncate(folder / "class_2" / "3.jpg")
    truncate(folder / "class_3" / "0.jpg")
    model = tiny_vit()
    with pytest.raises(UserError, match=r"class_2/3\.jpg"):
        evaluate(model, open_data(model, folder), device="cpu", strict=True)


def test_unreadable_images_of_a_limited_set_have_their_own_names(folder: Path) -> None:
    truncate(folder / "class_5" / "0.jpg")
    model = tiny_vit()
    result = evaluate(model, open_data(model, folder, limit=10), device="cpu")
    assert (result.count, result.unreadable) == (9, ("class_5/0.jpg",))


def test_progress_counts_every_image(folder: Path) -> None:
    truncate(folder / "class_2" / "3.jpg")
    advanced: list[int] = []
    model = tiny_vit()
    data = open_data(model, folder)
    evaluate(model, data, batch_size=25, device="cpu", on_batch=advanced.append)
    assert advanced == [25, 25, 10]


def test_fewer_than_five_classes(tmp_path: Path) -> None:
    model = tiny_vit(num_classes=3)
    folder = class_folders(tmp_path / "set", classes=CLASSES[:3])
    result = evaluate(model, open_data(model, folder), device="cpu")
    assert result.top5 == 100


def test_amp_is_close_and_the_model_is_in_eval_mode(folder: Path) -> None:
    model = tiny_vit(drop_path_rate=0.5).train()
    plain = evaluate(model, open_data(model, folder), device="cpu")
    half = evaluate(model, open_data(model, folder), device="cpu", amp=True)
    assert half.loss != plain.loss
    assert half.loss == pytest.approx(plain.loss, rel=0.05)


def test_batches_in_memory_are_used_as_they_are(folder: Path) -> None:
    from tpcli.data import batches

    model = tiny_vit()
    data = open_data(model, folder)
    kept = list(batches(data, 16))
    result = evaluate(model, data, device="cpu", decoded=kept)
    assert np.array_equal(result.correct, evaluate(model, data, device="cpu").correct)


def test_interval_of_a_result(folder: Path) -> None:
    model = tiny_vit()
    result = evaluate(model, open_data(model, folder), device="cpu")
    low, high = wilson_interval(int(result.correct.sum()), 60)
    assert result.top1_ci95 == (100 * low, 100 * high)


class Failing(nn.Module):
    """Raises at the second batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error, self.calls = error, 0
        self.inner = tiny_vit()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise self.error
        logits: Tensor = self.inner(x)
        return logits


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_out_of_memory_says_the_batch_size_to_try(folder: Path, error: BaseException) -> None:
    model = Failing(error)
    with pytest.raises(UserError, match="batch_size=12"):
        evaluate(model, open_data(model.inner, folder), batch_size=24, device="cpu")


def test_out_of_memory_at_one_image(folder: Path) -> None:
    model = Failing(MemoryError())
    with pytest.raises(UserError, match="batch size 1"):
        evaluate(model, open_data(model.inner, folder), batch_size=1, device="cpu")


def test_other_errors_are_not_called_memory(folder: Path) -> None:
    model = Failing(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(model, open_data(model.inner, folder), batch_size=24, device="cpu")


def test_output_that_is_not_finite_is_an_error(folder: Path) -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(TpcliError, match="not finite"):
        evaluate(model, open_data(model, folder), device="cpu")


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")
    assert isinstance(pick_device("auto"), torch.device)
    with pytest.raises(UserError, match="'gpu'"):
        pick_device("gpu")


def test_a_model_that_answers_for_each_token() -> None:
    loaded = load("demo", pretrained=False, model_kwargs={"global_pool": ""})
    with pytest.raises(UserError, match="global_pool"):
        evaluate(loaded.model, create("demo", loaded.data_config, limit=4))
