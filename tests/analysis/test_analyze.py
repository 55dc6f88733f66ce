"""`tpcli analyze`: what is measured where, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import tpcli
from tests.helpers import architectures as zoo
from tests.helpers.cli import Run
from tests.helpers.images import picture
from tests.helpers.models import SIDE_BY_SIDE, tiny_vit
from tpcli import data
from tpcli.analysis import measures as rank
from tpcli.analysis import measures as spectrum
from tpcli.analysis.result import KEEP, STAGE_MEASURES, Analysis, Kept, Stage, verdict
from tpcli.analysis.run import analyze, stages, why_no_grid
from tpcli.config.options import pooling_options
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import data_config
from tpcli.report.analysis import analysis_figure
from tpcli.report.figure import figure_bytes
from tpcli.surgery import pooling_spec

WARD = [pooling_options("ward")]


def by_hand(model: nn.Module, x: Tensor) -> dict[tuple[int, str], Tensor]:
    """Patch tokens at each place, block after block, by timm's own modules."""
    found = {}
    with torch.no_grad():
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
        for i, block in enumerate(model.blocks):
            found[i, "input"] = x
            found[i, "attention"] = x + block.attn(block.norm1(x))
            x = block(x)
            found[i, "mlp"] = x
    return {place: tokens[:, 1:] for place, tokens in found.items()}


def test_each_place_has_the_measures_of_its_tokens() -> None:
    model = tiny_vit(depth=2)
    digits = data.create("demo", data_config(model), limit=6)
    pixels = torch.stack([torch.as_tensor(image) for image, _ in digits.images])
    places = by_hand(model, digits.normalize(pixels))
    for batch_size in (6, 4):
        found = analyze(model, digits, WARD, RunOptions(batch_size, "cpu"))
        assert (found.count, found.patches, found.channels, found.depth) == (6, 64, 48, 2)
        assert [(s.index, s.stage) for s in found.blocks] == list(places)
        for stage in found.blocks:
            tokens = places[stage.index, stage.stage]
            line = spectrum.log_amplitudes(tokens, (8, 8)).mean(0)
            torch.testing.assert_close(torch.tensor(stage.spectrum), line, rtol=1e-4, atol=1e-4)
            assert stage.relative_log_amplitude == stage.spectrum[-1]
            expected = rank.effective_rank(tokens).mean().item()
            assert stage.effective_rank == pytest.approx(expected, rel=1e-4)
        assert [k.tokens for k in found.redundancy] == [56, 48, 32, 16] * 2
        kept = [k.kept_variance for k in found.redundancy[:4]]
        assert kept == sorted(kept, reverse=True)


def test_a_pooled_model_is_measured_without_and_comes_back_pooled() -> None:
    plain, pooled = tiny_vit(depth=2), tpcli.pool(tiny_vit(depth=2), [30, 10])
    digits = data.create("demo", data_config(plain), limit=3)
    found = [analyze(m.train(), digits, WARD, RunOptions(device="cpu")) for m in (plain, pooled)]
    assert found[0] == found[1]
    spec = pooling_spec(pooled)
    assert spec is not None
    assert spec.schedule.tokens == (30, 10)
    assert pooled.training
    assert "forward" not in vars(plain.blocks[0])


@pytest.mark.long
@pytest.mark.parametrize("block_fn", SIDE_BY_SIDE)
def test_side_by_side_there_is_no_place_between(block_fn: str) -> None:
    model = tiny_vit(block_fn=block_fn, depth=2)
    digits = data.create("demo", data_config(model), limit=2)
    found = analyze(model, digits, WARD, RunOptions(device="cpu"))
    assert [s.stage for s in found.blocks] == ["input", "mlp"] * 2
    assert "side by side" in verdict(found)[0]
    figure_bytes(analysis_figure(found, "x"), ".png")


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_rope_224", "beit_base_patch16_224", "vit_relpos_base_patch16_rpn_224"],
)
def test_stages_change_nothing_of_what_a_model_answers(name: str) -> None:
    model = zoo.small(name)
    x = zoo.images(model)
    seen: list[str] = []
    with torch.no_grad():
        plain = model(x)
        with stages(model, lambda index, stage, tokens: seen.append(stage)):
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), plain)
    assert seen == ["input", "attention", "mlp"] * zoo.DEPTH


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_map", "vit_tiny_r_s16_p8_224"])
def test_where_tokens_have_no_grid_spectra_are_left_out(name: str) -> None:
    model = zoo.small(name)
    assert why_no_grid(model, (6, 6))
    places = [Stage(0, stage, None, 1, 1, 1, 1, 1, None) for stage in ("input", "attention", "mlp")]
    kept = tuple(Kept(0, "ward", keep, 1, 0.5) for keep in KEEP)
    found = Analysis(1, 36, 96, tuple(places), kept, why_no_grid(model, (6, 6)))
    figure_bytes(analysis_figure(found, "x"), ".png")
    assert "tokens apart from their mean" in verdict(found)[0]


@pytest.mark.long
def test_the_command_bare(run: Run) -> None:
    outcome = run("analyze", "--limit", "8", "--method", "ward,grid", "--out", "a.png", "--json")
    found = outcome.document
    assert (found["model"], found["data"], found["count"]) == ("demo", "demo, validation", 8)
    assert len(found["blocks"]) == 24
    assert set(STAGE_MEASURES) < set(found["blocks"][0])
    assert [k["keep"] for k in found["redundancy"][:4]] == list(KEEP)
    assert [k["tokens"] for k in found["redundancy"][4:8]] == [56, 48, 32, 16]
    assert len(found["verdict"]) == 3
    assert json.loads(Path("a.json").read_text()) == found
    frame = pd.read_csv("a.csv")
    assert len(frame) == 24
    assert frame["kept_grid_0.5"].notna().sum() == 8
    for kind in ("html", "md"):
        text = Path(f"a.{kind}").read_text()
        assert "tpcli analyze --limit 8" in text
        assert found["verdict"][2] in text
    again = run("analyze", "--limit", "2", "--method", "ward", "--out", "a.svg")
    assert again.code == 0, again.err
    assert "written: a.svg" in again.out


@pytest.mark.long
def test_images_without_labels_and_broken_ones(run: Run, model_folder: Path) -> None:
    Path("c/one").mkdir(parents=True)
    for i in range(3):
        picture(i).save(f"c/one/{i}.png")
    Path("c/one/x.png").write_text("no picture")
    outcome = run("analyze", model_folder, "--data", "c", "--method", "random", "--out", "x.pdf")
    assert outcome.code == 0, outcome.err
    assert "unreadable: 1 left out: one/x.png" in outcome.out
    strict = run("analyze", model_folder, "--data", "c", "--method", "random", "--strict")
    assert (strict.code, "one/x.png" in strict.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vit_x"], "'vit_x'"),
        (["--method", "top-k"], "top-k"),
        (["--out", "other.png"], "other.json"),
        (["--limit", "0"], "--limit '0'"),
        (["--split", "test"], "'test'"),
    ],
)
def test_mistakes(run: Run, arguments: list[str], words: str) -> None:
    Path("other.json").write_text("{}")
    outcome = run("analyze", *arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
