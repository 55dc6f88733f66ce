"""Settings for every test: offline, deterministic, one thread."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("COLUMNS", "120")

import pytest
import torch
from hypothesis import settings

from tests.helpers.cli import Outcome, Run
from tests.helpers.images import picture
from tests.helpers.models import tiny_vit
from tpcli import pool, save
from tpcli.cli import main as main_module

examples = 100 if os.environ.get("CI") else 25
settings.register_profile(
    "tpcli", derandomize=True, deadline=None, max_examples=examples, database=None
)
settings.load_profile("tpcli")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the program in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tpcli", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main_module.main()
        out, err = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int)
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, saved."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    save(tiny_vit(), folder)
    return folder


@pytest.fixture(scope="session")
def pooled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, pooled."""
    folder = tmp_path_factory.mktemp("models") / "pooled"
    save(pool(tiny_vit(), "r:10", "ward", iterations=4), folder)
    return folder


@pytest.fixture(scope="session")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model without a head, saved."""
    folder = tmp_path_factory.mktemp("models") / "backbone"
    save(tiny_vit(depth=2, num_classes=0), folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images beside each other, without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        picture(i).save(folder / f"{i}.png")
    return folder
