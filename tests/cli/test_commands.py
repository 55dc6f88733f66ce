"""Commands that work with several models, methods or files: what they mix, print and overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.cli import Run
from tests.helpers.images import CLASSES, class_folders
from tests.helpers.models import tiny_vit
from tpcli import save

SWEEP = ("--workers", 0, "--batch-size", 16, "--device", "cpu", "--cache", "cache", "--json")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images", classes=CLASSES, per_class=1)


@pytest.fixture
def schedule_file(tmp_path: Path) -> Path:
    """Tokens and a method for the tiny model."""
    file = tmp_path / "mine.json"
    method = {"method": "tome", "metric": "keys"}
    document = {"format": "tpcli-schedule/1", "tokens": [50, 40, 30, 20], "method": method}
    file.write_text(json.dumps(document))
    return file


# --- names


@pytest.mark.long
def test_models_of_one_name_are_told_apart(run: Run, tmp_path: Path, images: Path) -> None:
    for parent, depth in (("a", 4), ("b", 2)):
        save(tiny_vit(depth=depth), tmp_path / parent / "mine")
    more = ("--data", images, "--method", "ward", "--schedule", "r:4", *SWEEP)
    found = run("pareto", "a/mine", "b/mine", *more).document
    assert [point["model"] for point in found["points"]] == ["a/mine"] * 2 + ["b/mine"] * 2
    assert found["points"][0]["gflops"] > found["points"][2]["gflops"]


def test_the_same_weights_in_two_folders_are_two_curves(
    run: Run, tmp_path: Path, images: Path
) -> None:
    for parent in "ab":
        save(tiny_vit(), tmp_path / parent / "mine")
    more = ("--data", images, "--method", "ward", "--schedule", "r:4", *SWEEP)
    found = run("pareto", "a/mine", "b/mine", *more).document
    assert [point["model"] for point in found["points"]] == ["a/mine"] * 2 + ["b/mine"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("demo demo", "model 'demo' is there twice"),
        ("--method ward,", "--method 'ward,' has an empty name"),
        ("--budget 0.5,", "'' is not a number; the budget must be one"),
        ("--budget 1.5", "budget 1.5 is out of range"),
        ("--schedule gone.json", "gone.json does not exist"),
        ("--schedule r:99", "schedule 'r:99' removes more than half"),
        ("--budget 0.5,0.01", "budget 0.01 can't be reached"),
        ("--device meta", "--device 'meta' is unknown"),
        ("--device ''", "--device '' is unknown"),
        ("--num-classes -3", "--num-classes '-3' is out of range"),
    ],
)
def test_mistakes_come_before_any_measurement(
    run: Run, tmp_path: Path, arguments: str, message: str
) -> None:
    words = ["" if word == "''" else word for word in arguments.split()]
    found = run("pareto", *words, "--cache", "cache")
    assert found.code == 2
    assert message in found.err
    assert not list(tmp_path.glob("cache/points/*.json"))


# --- methods of schedule files


def test_options_given_replace_those_of_a_schedule_file(
    run: Run, model_folder: Path, pooled_folder: Path, schedule_file: Path
) -> None:
    for folder in (model_folder, pooled_folder):
        for more, position in (((), "attention"), (("--position", "block"), "block")):
            arguments = ("--schedule", schedule_file, *more, "--json")
            found = run("flops", folder, *arguments).document["method"]
            chosen = (found["method"], found["metric"], found["position"])
            assert chosen == ("tome", "keys", position)


def test_bench_takes_the_method_of_the_model_or_the_file(
    run: Run, pooled_folder: Path, schedule_file: Path
) -> None:
    quick = ("--batch-size", 1, "--seconds", 0, "--json")
    found = run("bench", pooled_folder, *quick).document
    assert (found["method"], found["schedule"]) == ("ward", "r:10")
    assert run("bench", pooled_folder, "--schedule", schedule_file, *quick).document["method"] == (
        "tome"
    )
    several = run("bench", pooled_folder, "--method", "random,tome,random", *quick).document
    assert [one["method"] for one in several] == ["random", "tome"]
    assert {one["schedule"] for one in several} == {"r:10"}


# --- what is printed and written


def test_the_command_that_is_proposed_works(run: Run, tmp_path: Path) -> None:
    out = run("apply", "--out", "my pooled").out
    assert "(try: tpcli eval 'my pooled' --data demo)" in out
    assert run("eval", "my pooled", "--data", "demo", "--limit", 40, "--workers", 0).code == 0


@pytest.mark.long
def test_a_report_replaces_a_report(run: Run, tmp_path: Path) -> None:
    more = ("--limit", 40, "--method", "ward", "--schedule", "r:4", *SWEEP)
    for _ in range(2):
        found = run("pareto", "--out", "plot.png", *more).document
    assert found["measured"] == 0


def test_a_file_never_replaces_a_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.json").mkdir()
    (tmp_path / "mine.json" / "work.txt").write_text("mine")
    found = run("schedule", "--out", "mine.json", "--force")
    assert (found.code, "mine.json is a folder" in found.err) == (2, True)
    assert (tmp_path / "mine.json" / "work.txt").is_file()
