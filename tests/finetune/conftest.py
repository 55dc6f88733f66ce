"""A tiny model and a run of it that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tpcli import pool
from tpcli.config.recipe import STRONG
from tpcli.finetune import FinetuneResult, Recipe, finetune, open_data
from tpcli.models.load import load
from tpcli.models.save import save

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 10,
}
QUICK = Recipe(
    epochs=2,
    batch_size=16,
    lr=1e-3,
    precision="fp32",
    workers=0,
    drop_path=0.2,
    distill=True,
    save_minutes=60,
    **STRONG,  # type: ignore[arg-type]
)
LIMIT = 67
SCHEDULE = "tokens:12,8,5"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums in one order, so that runs can be compared to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny untrained ViT."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save(model, folder)
    return folder


Run = Callable[..., FinetuneResult]


@pytest.fixture(scope="session")
def run(tiny: Path) -> Run:
    """Fine-tune the tiny model: run(out, watcher=..., schedule=..., **changes of the recipe)."""

    def start(
        out: Path,
        *,
        model: Path = tiny,
        schedule: str = SCHEDULE,
        limit: int = LIMIT,
        watcher: Any = None,
        resume: bool = False,
        force: bool = False,
        **changes: Any,
    ) -> FinetuneResult:
        recipe = replace(QUICK, **changes)
        loaded = load(str(model))
        pool(loaded.model, schedule)
        data = open_data("demo", loaded.data_config, recipe, limit=limit)
        return finetune(
            loaded, data, recipe, out=out, watcher=watcher, resume=resume, force=force, device="cpu"
        )

    return start


@pytest.fixture(scope="session")
def straight(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; only looked at."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(out)
    return out


def quick_options(model: Path, out: Path) -> list[object]:
    """The options of the run that `run` makes."""
    return [
        "finetune", model, "--data", "demo", "--schedule", SCHEDULE, "--limit", LIMIT, "--out", out,
        "--epochs", QUICK.epochs, "--batch-size", QUICK.batch_size, "--lr", QUICK.lr,
        "--precision", "fp32", "--workers", 0, "--drop-path", QUICK.drop_path, "--distill",
        "--device", "cpu", "--mix-prob", STRONG["mix_prob"], "--aa", STRONG["aa"],
        "--erasing", STRONG["erasing"],
    ]  # fmt: skip
