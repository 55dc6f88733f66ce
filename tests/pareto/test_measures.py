"""Sweeps of models without a head, and of images without labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.cli import Run
from tests.helpers.images import picture
from tests.helpers.points import COUNT, point
from tpcli.pareto import Point, compare, headline


@pytest.mark.long
def test_a_report_on_similarity(run: Run, headless: Path, photos: Path, tmp_path: Path) -> None:
    line = (
        "pareto",
        headless,
        "--data",
        photos,
        "--schedule",
        "tokens:20,9",
        "--method",
        "ward,k-means",
        "--workers",
        0,
        "--cache",
        tmp_path / "cache",
        "--device",
        "cpu",
    )
    found = run(*line, "--json")
    assert found.code == 0, found
    assert "measured by similarity, as " in found.err
    document = json.loads(found.out)
    assert document["measure"] == "similarity"
    base, pooled = document["points"][:2]
    assert (base["measure"], base["score"], base["neighbours"]) == ("similarity", 100.0, 100.0)
    assert pooled["score_lo"] < pooled["score"] < pooled["score_hi"] < 100
    assert not {"top1", "top5", "loss", "kl", "each", "more"} & set(pooled)
    assert set(document["headline"]["ward"]["same_accuracy_flops_saving"]) == {"1.0", "2.0", "5.0"}
    with (tmp_path / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["measure"] for row in rows] == ["similarity"] * 3
    assert float(rows[1]["score"]) == pytest.approx(pooled["score"])
    assert "neighbours" in rows[0]
    assert not {"top1", "top5", "kl"} & set(rows[0])
    text = (tmp_path / "pareto.md").read_text()
    assert "similarity %" in text
    assert "paired t-test" in text
    assert "similarity to the unpooled" in (tmp_path / "pareto.html").read_text()
    (comparison,) = document["comparisons"]
    assert comparison["ci95"][0] <= comparison["difference"] <= comparison["ci95"][1]
    again = json.loads(run(*line, "--json").out)  # from the cache
    assert (again["measured"], again["comparisons"]) == (0, document["comparisons"])
    assert again["points"] == document["points"]
    agreement = run(*line, "--measure", "agreement")
    assert agreement.code == 2
    assert "has no head with classes to agree on" in agreement.err


def similar(gflops: float, score: float, method: str = "none", base: float = 1.0) -> Point:
    """A point of a number for each image."""
    spread = np.linspace(-0.01, 0.01, COUNT, dtype=np.float32)
    made = point(gflops, score, method, base=base)
    each = np.float32(score / 100) + (0 if score == 100 else spread)
    each = np.full(COUNT, each, np.float32) if np.ndim(each) == 0 else each
    return Point(**{**vars(made), "measure": "similarity", "more": {}, "each": each})


def test_the_headline_of_similarity() -> None:
    points = [similar(1, 100), similar(0.8, 98, "ward"), similar(0.6, 96, "ward")]
    found = headline(points, "ward")
    assert found.words.startswith("ward: 98% similarity with 20% less")
    savings = found.same_accuracy_flops_saving
    assert {below: s and round(s.value, 3) for below, s in savings.items()} == {
        "1.0": 0.1,
        "2.0": 0.2,
        "5.0": 0.4,
    }
    low, high = savings["2.0"].ci95
    assert 0.19 < low < 0.2 < high < 0.21
    poor = headline([similar(1, 100), similar(0.5, 60, "ward")], "ward")
    assert poor.words.startswith("ward: 98% similarity with 3%")
    # two models, both of them 100: nothing is gained at equal FLOPs
    assert headline([*points, similar(0.5, 100)], "ward").same_flops_accuracy_gain is None


def test_paired_difference_of_means() -> None:
    reference, other = similar(0.5, 97, "ward"), similar(0.5, 96, "tome")
    other.each[: COUNT // 2] += 0.001
    (found,) = compare([reference, other], "ward")
    assert found.difference == pytest.approx(-0.95, abs=1e-3)
    assert found.ci95 == pytest.approx((-0.953, -0.947), abs=1e-3)
    assert found.p_value < 1e-9
    (same,) = compare([reference, similar(0.5, 97, "tome")], "ward")
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_points_of_numbers_come_back_from_their_file() -> None:
    before = similar(0.5, 97, "ward")
    before = Point(**{**vars(before), "more": {"neighbours": 80.0}})
    before = Point(**{**vars(before), "score": 100 * before.each.mean(dtype=float)})
    document = json.loads(json.dumps(before.to_file()))
    after = Point.from_file(document)
    assert after == before
    assert np.array_equal(after.each, before.each)
    with pytest.raises(ValueError, match="do not make a score"):
        Point.from_file({**document, "score": 50.0})


@pytest.mark.long
def test_fine_tuning_without_a_head(run: Run, headless: Path, tmp_path: Path) -> None:
    """The model without pooling is what it would learn from, so it stays as it is."""
    for split, count in (("train", 16), ("val", 6)):
        (tmp_path / "set" / split).mkdir(parents=True)
        for i in range(count):
            picture(100 * count + i).save(tmp_path / "set" / split / f"{i}.png")
    (tmp_path / "r.toml").write_text(
        'batch-size = 8\nworkers = 0\nlr = 0.001\nprecision = "fp32"\nema-decay = 0.0\n'
    )
    found = run(
        "pareto", headless, "--data", tmp_path / "set", "--schedule", "tokens:20,9",
        *("--method", "ward", "--workers", 0, "--cache", tmp_path / "cache", "--device", "cpu"),
        *("--finetune-epochs", 1, "--finetune-config", tmp_path / "r.toml", "--json"),
    )  # fmt: skip
    assert found.code == 0, found
    base, plain, trained_base, trained = json.loads(found.out)["points"]
    assert (base["score"], trained_base["score"], trained_base["epochs"]) == (100.0, 100.0, 1)
    assert plain["measure"] == trained["measure"] == "similarity"
    assert trained["score"] >= plain["score"]  # training that only does harm is not kept
