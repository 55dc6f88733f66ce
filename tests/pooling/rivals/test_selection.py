"""Methods that prune: what stays, what is dropped, what becomes of sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.models import images, tiny_vit, tokens
from tpcli import count_flops, pool
from tpcli.errors import UserError
from tpcli.pooling import Clusters, get_method, reduce_tokens

from . import reference


def pooled(name: str, x: Tensor, k: int, **keywords: object) -> Tensor:
    labels, medoids, shares, _ = get_method(name).assign(x, k, **keywords)
    assert shares is not None
    return reduce_tokens(x, Clusters.from_labels(labels, k, medoids), shares)


@pytest.mark.parametrize("name", ["top-k", "power-bert"])
@pytest.mark.parametrize("k", [19, 8, 1])
def test_the_highest_scores_stay_in_their_order(name: str, k: int) -> None:
    x, scores = tokens(3, 20, 6), torch.rand(3, 20)
    kept = pooled(name, x, k, weights=scores)
    for row in range(3):
        stays = sorted(sorted(range(20), key=lambda i: -float(scores[row, i]))[:k])
        assert torch.equal(kept[row], x[row, stays])


@pytest.mark.parametrize("k", [19, 8, 2, 1])
def test_evit_fuses_what_top_k_drops(k: int) -> None:
    x, scores = tokens(3, 20, 6), torch.rand(3, 20)
    found = pooled("evit", x, k, weights=scores)
    for row in range(3):
        expected = reference.evit(x[row].double().numpy(), scores[row].double().numpy(), k)
        torch.testing.assert_close(found[row], torch.tensor(expected).float())


def test_random_is_seeded_and_the_same_in_every_batch() -> None:
    x = torch.arange(64.0).expand(3, 64).unsqueeze(-1)
    kept = pooled("random", x, 20)
    assert torch.equal(kept, pooled("random", x, 20))
    assert torch.equal(kept[:1], pooled("random", x[:1], 20))
    assert not torch.equal(kept, pooled("random:seed=1", x, 20))
    assert len(set(kept[0].flatten().tolist())) == 20


def test_random_keeps_every_position_equally_often() -> None:
    x = torch.arange(64.0).view(1, 64, 1)
    count = torch.zeros(64)
    for seed in range(400):
        count[pooled(f"random:seed={seed}", x, 16).long().flatten()] += 1
    assert count.min() > 60  # 100 expected, standard deviation 9
    assert count.max() < 140


def test_dropped_tokens_count_for_nothing() -> None:
    model = tiny_vit(global_pool="avg")
    seen: list[Tensor] = []
    pool(model, "tokens:40,20,20,10", "top-k")
    for block in model.blocks:  # type: ignore[union-attr]
        block.token_pooling.register_forward_hook(lambda m, a, out: seen.append(out[1]))
    with torch.no_grad():
        model(images())
    assert [s.shape[1] for s in seen] == [40, 20, 20, 10]
    assert all(bool((s == 1).all()) for s in seen)


def test_top_k_reads_the_class_token_or_all_tokens() -> None:
    x = images()
    with torch.no_grad():
        with_class = pool(tiny_vit(), "r:8", "top-k")(x)
        asked = pool(tiny_vit(), "r:8", "top-k", weights="class")(x)
        without = {"global_pool": "avg", "class_token": False}
        received = pool(tiny_vit(**without), "r:8", "top-k")(x)
        significance = pool(tiny_vit(**without), "r:8", "power-bert")(x)
    assert torch.equal(with_class, asked)
    assert torch.equal(received, significance)
    with pytest.raises(UserError, match="`weights=class` needs a class token"):
        pool(tiny_vit(**without), "r:8", "top-k", weights="class")


def test_the_class_row_alone_is_looked_at() -> None:
    top = count_flops(pool(tiny_vit(depth=2), "r:8", "top-k")).pooling
    power = count_flops(pool(tiny_vit(depth=2), "r:8", "power-bert")).pooling
    assert 0 < top < power / 10
