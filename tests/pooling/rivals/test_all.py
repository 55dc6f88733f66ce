"""What holds for every method by name."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.models import images, tiny_vit
from tpcli import count_flops, pool, trace, unpool
from tpcli.config.options import options_from_dict, pooling_options
from tpcli.errors import UserError
from tpcli.pooling import Method, methods, register

NAMES = [method.name for method in methods()]
GRIDS = "tokens:56,36,16,4"


@pytest.mark.parametrize("name", NAMES)
def test_keeping_all_tokens_changes_nothing(name: str) -> None:
    model, x = tiny_vit(), images()
    with torch.no_grad():
        plain = model(x)
        assert torch.equal(pool(model, "tokens:64,64,64,64", name)(x), plain)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_k_tokens_the_same_every_time(name: str) -> None:
    model, x = pool(tiny_vit(), GRIDS, name), images(3)
    with torch.no_grad(), trace(model) as record:
        first = model(x)
    for index, k in zip(record.assignments, (56, 36, 16, 4), strict=True):
        assert all(len(set(row)) == k for row in index.tolist())
    with torch.no_grad():
        assert torch.equal(model(x), first)
        torch.testing.assert_close(model(x[1:2]), first[1:2])  # alone as in a batch


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_flops_are_counted_and_gradients_flow(name: str) -> None:
    model = pool(tiny_vit(depth=2), "tokens:36,16", name)
    assert count_flops(model).pooling > 0
    model(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_the_way_through_json(name: str) -> None:
    options = pooling_options(name)
    assert options_from_dict(options.to_dict()) == options


def test_parameters_follow_the_name() -> None:
    assert pooling_options("atc:linkage=single").method == "atc:linkage=single"
    for spec, text in {
        "atc:linkage=ward": "linkage 'ward' of method atc is unknown; use one of average, complete",
        "atc:link=single": "is no parameter of method atc; write it like atc:linkage=average",
        "dpc-knn:neighbours=0": "give a whole number of 1 or more",
        "dpc-knn:neighbours=2.5": "give a whole number of 1 or more",
        "pitome:alpha=nan": "give a number of 0 to 1000",
        "tome:r=3": "it has none, so leave it out",
        "tme": "Did you mean tome",
    }.items():
        with pytest.raises(UserError, match=text):
            pooling_options(spec)


def test_options_without_effect_are_refused() -> None:
    for method, given, text in (
        ("tome", {"weights": "class"}, r"method tome takes no weights; leave it out \(it takes"),
        ("power-bert", {"weights": "class"}, "can't take weights 'class'; use one of significance"),
        ("top-k", {"weights": "size"}, "can't take weights 'size'; use one of attention, class"),
        ("random", {"metric_dim": 8}, "takes no metric_dim"),
    ):
        with pytest.raises(UserError, match=text):
            pooling_options(method, **given)


def test_names_are_taken_once() -> None:
    method = Method(name="tome", summary="", paper="", assign=lambda z, k: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="registered already"):
        register(method)


def test_ward_start_is_one_token_per_cluster() -> None:
    model, x = tiny_vit(), images()
    with torch.no_grad():
        for name in ("k-medoids", "k-means"):
            assert pool(model, GRIDS, name, start="ward")(x).isfinite().all()
            unpool(model)
