"""Three images in the report of a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.images import class_folders
from tests.helpers.models import tiny_vit
from tests.helpers.points import point
from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.models.load import LoadedModel, data_config
from tpcli.pareto import ModelSource, SweepResult
from tpcli.pareto.points import FINETUNED
from tpcli.report import clusters as strip
from tpcli.report import write_report
from tpcli.surgery import pooling_spec

from .test_report import CONTEXT

OPTIONS = pooling_options("ward").to_dict()


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    folder = class_folders(tmp_path / "images", per_class=1)
    (folder / "class_0" / "0.png").write_text("no picture")
    model = tiny_vit()
    loaded = LoadedModel(model, "m", data_config(model))
    return ModelSource(loaded, data.create(str(folder), loaded.data_config))


def swept(*tokens: tuple[int, ...]) -> SweepResult:
    points = [point(1.0, 80)] + [
        replace(point(gflops, 80, "ward"), tokens=t, options=OPTIONS)
        for gflops, t in zip((0.8, 0.5), tokens, strict=False)
    ]
    return SweepResult(tuple(points), 3)


def test_the_point_of_the_headline_on_images_that_can_be_read(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(strip, "clusters_figure", lambda seen, title: drawn.append((seen, title)))
    monkeypatch.setattr(strip, "small_picture", lambda figure: b"PICTURE")
    result = swept((50, 40, 30, 20), (40, 30, 20, 10))
    picture = strip.pooled_strip([source], result)
    (seen, title) = drawn[0]
    assert title == "m at 50% of its GFLOPs, ward"
    assert [one.name for one in seen] == ["class_1/0.png", "class_3/0.png", "class_6/0.png"]
    assert [b.tokens for b in seen[0].blocks] == [40, 30, 20, 10]
    assert pooling_spec(source.loaded.model) is None
    write_report(result, CONTEXT, tmp_path / "plot.png", strip=picture)
    assert "UElDVFVSRQ==" in (tmp_path / "plot.html").read_text()  # PICTURE


def test_nothing_where_there_is_nothing_to_show(source: ModelSource) -> None:
    assert strip.pooled_strip([source], swept((64, 64, 64, 64))) is None
    base, pooled = swept((50, 40, 30, 20)).points
    tuned = [replace(p, method=p.method + FINETUNED, curve="", epochs=1) for p in (base, pooled)]
    assert strip.pooled_strip([source], SweepResult((base, *tuned))) is None
