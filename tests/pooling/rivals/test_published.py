"""The schedules that DiffRate published, as files: they load, and cost what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpcli.config.options import options_from_dict
from tpcli.config.schedule import file_options, parse

FILES = sorted((Path(__file__).parents[3] / "docs" / "schedules").glob("diffrate-*.json"))
CHANNELS = {"deit_tiny": 192, "deit_small": 384, "deit_base": 768}


def test_there_are_five_for_each_model() -> None:
    models = [file.name.split("-")[1] for file in FILES]
    assert {model: models.count(model) for model in models} == dict.fromkeys(CHANNELS, 5)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_schedule_costs_what_its_name_says(file: Path) -> None:
    """By the paper's own count: two products of attention, four and eight C x C layers."""
    _, model, gflops = file.stem.split("-")
    made_by = json.loads(file.read_text())["made_by"]
    assert (made_by["model"], made_by["gflops"]) == (f"{model}_patch16_224", float(gflops))
    schedule = parse(str(file), patch_tokens=196, depth=12)
    options = options_from_dict(file_options(str(file)) or {})
    assert options.method.startswith("diffrate:dropped=")
    channels, tokens = CHANNELS[model], 197
    flops = (196 * 3 * 16**2 + 1000) * channels
    for left in schedule.tokens:
        flops += 4 * tokens * channels**2 + 2 * tokens**2 * channels + 8 * (left + 1) * channels**2
        tokens = left + 1
    slack = 0.06 if file.stem == "diffrate-deit_tiny-0.6" else 0.04  # its counts come to 0.655
    assert flops / 1e9 == pytest.approx(float(gflops), abs=slack)
