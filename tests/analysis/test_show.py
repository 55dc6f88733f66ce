"""`tpcli show`: clusters are drawn where the patches are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tpcli
from tests.helpers.cli import Run
from tests.helpers.images import picture
from tests.helpers.models import tiny_vit
from tpcli.analysis.clusters import BlockClusters, choose_blocks, guesses, look
from tpcli.data.images import normalize
from tpcli.errors import UserError
from tpcli.report.clusters import MEANINGS, clusters_figure, paint

CONFIG = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 32, 32)}
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (16, 32, 3), dtype=np.uint8)
SOURCE = RNG.integers(0, 5, (4, 8))
NOTHING = np.zeros((4, 8), bool)


def middles(drawn: np.ndarray) -> np.ndarray:
    """The colour in the middle of each patch: (rows, columns, 3)."""
    side = drawn.shape[0] // 4
    return drawn[side // 2 :: side, side // 2 :: side]


def test_a_region_has_the_mean_colour_of_its_patches() -> None:
    """Patch by patch, on a grid that is not square."""
    drawn = middles(paint(PICTURE, BlockClusters(0, 5, SOURCE, NOTHING), "mean", 32))
    for y in range(4):
        for x in range(8):
            members = [
                PICTURE[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1, 3)
                for i in range(4)
                for j in range(8)
                if SOURCE[i, j] == SOURCE[y, x]
            ]
            mean = np.concatenate(members).astype(float).mean(0)
            assert np.abs(drawn[y, x] - mean).max() <= 0.5


def test_lines_are_between_regions_and_nowhere_else() -> None:
    black = np.zeros_like(PICTURE)
    drawn = paint(black, BlockClusters(0, 5, SOURCE, NOTHING), "outline", 32)
    side = drawn.shape[0] // 4
    white = drawn.min(2) > 0
    for y in range(4):
        for x in range(1, 8):
            line = white[y * side + side // 2, x * side - 1 : x * side + 1]
            assert line.all() == line.any() == (SOURCE[y, x] != SOURCE[y, x - 1])


@pytest.mark.parametrize("style", MEANINGS)
def test_dropped_patches_are_pale_and_count_for_nothing(style: str) -> None:
    dropped = NOTHING.copy()
    dropped[0, :3] = True
    block = BlockClusters(0, 5, SOURCE, dropped)
    assert middles(paint(PICTURE, block, style, 32))[0, :3].min() >= 190
    other = np.where(np.repeat(np.repeat(dropped, 4, 0), 4, 1)[..., None], 0, PICTURE)
    apart = [middles(paint(p.astype(np.uint8), block, style, 32)) for p in (PICTURE, other)]
    assert np.array_equal(apart[0][~dropped], apart[1][~dropped])


def test_sizes_and_random_tell_tokens_apart() -> None:
    source = np.arange(32).reshape(4, 8)
    each = paint(PICTURE, BlockClusters(0, 32, source, NOTHING), "random", 32)
    assert len(np.unique(middles(each).reshape(-1, 3), axis=0)) == 32
    source[:2] = 0
    sizes = paint(PICTURE, BlockClusters(0, 32, source, NOTHING), "size", 16)
    assert len(np.unique(middles(sizes).reshape(-1, 3), axis=0)) == 2


def test_what_is_seen_is_what_was_traced() -> None:
    model = tpcli.pool(tiny_vit(img_size=(32, 16)), [32, 20, 20, 8], "top-k")
    pixels = torch.randint(0, 256, (2, 3, 32, 16), dtype=torch.uint8)
    model.train()
    seen = look(model, pixels, CONFIG, ["a", "b"])
    assert model.training
    model.eval()
    with torch.no_grad(), tpcli.trace(model) as record:
        logits = model(normalize(pixels, CONFIG))
    assert [(b.index, b.tokens) for b in seen[0].blocks] == [(1, 20), (3, 8)]
    for i, one in enumerate(seen):
        assert one.picture.shape == (32, 16, 3)
        for block, sources, gone in zip(one.blocks, record.sources, record.dropped, strict=True):
            assert np.array_equal(block.source, sources[i].view(8, 4).numpy())
            assert np.array_equal(block.dropped, gone[i].view(8, 4).numpy())
            assert int((~block.dropped).sum()) == block.tokens
        assert one.pooled_top == guesses(model, logits)[i]
        assert one.base_top != one.pooled_top


def test_blocks_are_spread_over_those_that_pool() -> None:
    model = tpcli.pool(tiny_vit(depth=12), [60] * 2 + [50] + [40, 30, 28, 26, 24, 22] + [20] * 3)
    assert choose_blocks(model) == [0, 4, 6, 9]
    assert choose_blocks(model, [9, 3]) == [3, 9]


def test_as_a_function_for_notebooks(tmp_path: Path) -> None:
    files = [tmp_path / "a$b$.png", tmp_path / "b.png"]
    for i, file in enumerate(files):
        picture(i).save(file)
    model = tpcli.pool(tiny_vit(), [40, 30, 20, 10])
    figure = tpcli.show(model, [str(files[0]), files[1]], blocks=[3], style="size")
    words = [text.get_text() for text in figure.axes[0].texts]
    shown = [w for w in words if w.endswith(("patches", "tokens"))]
    assert shown == ["64 patches", "block 3: 10 tokens"] * 2
    with pytest.raises(UserError, match="style 'x' is unknown; use one of mean, outline"):
        tpcli.show(model, files, style="x")
    with pytest.raises(UserError, match="there is no image to show"):
        tpcli.show(model, [])
    with pytest.raises(UserError, match="101 rows are too many"):
        clusters_figure(look(model, torch.zeros(1, 3, 32, 32), CONFIG, ["a"]) * 101)


def test_the_command_bare(run: Run) -> None:
    found = run("show", "--json", "--method", "ward,top-k", "--schedule", "keep:0.5@2,5").document
    assert (found["model"], found["out"]) == ("demo", "show.png")
    assert [row["method"] for row in found["images"]] == ["ward", "top-k"] * 4
    for row in found["images"]:
        assert row["blocks"] == [{"index": 2, "tokens": 32}, {"index": 5, "tokens": 16}]
        digit = row["path"].removeprefix("digit ")
        assert row["base_top"][0]["name"] == f"class {digit}"
        assert 0.5 < row["base_top"][0]["probability"] < 1
        assert len(row["pooled_top"]) == 3
    assert Path("show.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_other_formats_and_a_model_of_ones_own(run: Run, pooled_folder: Path, suffix: str) -> None:
    picture(0).save("a.png")
    outcome = run("show", pooled_folder, "a.png", "--out", f"x.{suffix}", "--style", "random")
    assert outcome.code == 0, outcome.err
    assert f"written: x.{suffix}" in outcome.out
    assert "0: 54, 1: 44, 2: 34, 3: 24" in outcome.out
    assert Path(f"x.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}"], "add image files"),
        (["demo", "gone.png"], "'gone.png'"),
        (["demo", "text.png"], "'text.png'"),
        (["--style", "means"], "mean, outline, size, random"),
        (["--blocks", "1,x"], "--blocks '1,x'"),
        (
            ["--blocks", "8", "--schedule", "keep:0.5@2,5"],
            "0 to 7",
        ),
        (["--blocks", "2,3", "--schedule", "keep:0.5@2,5"], "block 3"),
        (["--schedule", "none"], "no block"),
        (["--out", "show.gif"], "show.gif"),
    ],
)
def test_mistakes(run: Run, model_folder: Path, arguments: list[str], words: str) -> None:
    Path("text.png").write_text("no picture")
    outcome = run("show", *(a.replace("{model}", str(model_folder)) for a in arguments))
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not Path("show.png").exists()
