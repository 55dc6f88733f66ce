"""Settings for every test: offline, deterministic, one thread."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("COLUMNS", "120")

import pytest
import torch
from hypothesis import settings

settings.register_profile("tpcli", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("tpcli")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
