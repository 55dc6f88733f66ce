"""`--measure dense`: the cosine of each patch's features to the unpooled model's."""

from __future__ import annotations

import copy

import pytest
import torch

import tpcli
from tests.helpers.cli import Run
from tests.helpers.models import tiny_vit
from tpcli import data
from tpcli.errors import UserError
from tpcli.evaluation.measurer import dense, dense_blocks
from tpcli.evaluation.run import RunOptions
from tpcli.models.load import data_config

RUN = RunOptions(batch_size=3, device="cpu")


def test_it_is_the_mean_over_patches_of_what_models_answer() -> None:
    base = tiny_vit(global_pool="")
    digits = data.create("demo", data_config(base), limit=5)
    pooled = tpcli.pool(copy.deepcopy(base), [40, 30, 20, 10])
    found = dense(pooled, base, digits, RUN, blocks=[3, 1])
    pixels = torch.stack([torch.as_tensor(image) for image, _ in digits.images])
    x = digits.normalize(pixels)
    expected = []
    with torch.no_grad():
        both = [m.forward_intermediates(x, [1, 3], intermediates_only=True) for m in (pooled, base)]
    for ours, theirs in zip(*both, strict=True):
        expected.append(torch.nn.functional.cosine_similarity(ours, theirs).mean((1, 2)))
    torch.testing.assert_close(torch.tensor(found.each), torch.stack(expected).mean(0))
    assert found.score == pytest.approx(100 * torch.stack(expected).mean().item(), rel=1e-5)
    assert found.more == {
        "block_1": pytest.approx(100 * expected[0].mean().item(), rel=1e-5),
        "block_3": pytest.approx(100 * expected[1].mean().item(), rel=1e-5),
    }
    assert found.count == 5
    assert found.images_per_second > 0


def test_without_pooling_it_is_all_there() -> None:
    model = tiny_vit(depth=2)
    digits = data.create("demo", data_config(model), limit=4)
    assert dense(model, model, digits, RUN).score == pytest.approx(100, abs=1e-3)


def test_blocks_are_spread_and_checked() -> None:
    assert dense_blocks(tiny_vit(depth=12)) == [2, 5, 8, 11]
    assert dense_blocks(tiny_vit(depth=1)) == [0]
    with pytest.raises(UserError, match="block 4"):
        dense_blocks(tiny_vit(), [4])


def test_the_command(run: Run) -> None:
    found = run(
        "eval", "--measure", "dense", "--blocks", "3,7", "--schedule", "keep:0.5@2,5",
        "--limit", "20", "--json",
    ).document  # fmt: skip
    assert found["measure"] == "dense"
    assert 50 < found["block_7"] < found["block_3"] < 100
    assert found["score"] == pytest.approx((found["block_3"] + found["block_7"]) / 2, abs=1e-3)
    refused = run("eval", "--blocks", "3")
    assert (refused.code, "is for --measure dense" in refused.err) == (2, True)
