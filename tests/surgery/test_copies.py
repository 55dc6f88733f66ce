"""Pickles, files, other processes and DataParallel's replicas of a pooled model."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import VARIANTS, images, tiny_vit
from tpcli import pool, unpool
from tpcli.pooling import methods

SCHEDULE = [50, 40, 30, 20]
MODELS: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "prr": {"global_pool": "prr"},
    "Beit": {"name": "beit_base_patch16_224"},
    "Beit, average": {"name": "beit_base_patch16_224", "global_pool": "avg"},
    "relative positions": {"name": "vit_relpos_small_patch16_224"},
    "rotary": {"name": "eva02_tiny_patch14_224"},
}


def scores(variant: str) -> dict[str, str]:
    """Options that read queries and keys, where the model shows them."""
    return {} if "Beit" in variant else {"weights": "significance", "metric": "keys"}


def build(variant: str) -> nn.Module:
    return pool(tiny_vit(**MODELS[variant]), SCHEDULE, **scores(variant))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(images(3))


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("variant", "through"),
    [
        *((variant, through_pickle) for variant in MODELS),
        ("map", through_file),
        ("Beit", through_file),
        ("relative positions", copy.deepcopy),
        ("average", copy.deepcopy),
    ],
)
def test_a_copy_is_whole_and_its_own(variant: str, through: Any) -> None:
    model = build(variant)
    expected = logits(model)
    twin = through(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    assert torch.equal(logits(twin), expected)
    plain = logits(unpool(tiny_vit(**MODELS[variant])))
    assert torch.equal(logits(unpool(twin)), plain)
    assert not torch.equal(logits(model), expected)


@pytest.mark.parametrize("method", [m.name for m in methods()])
def test_every_method_pickles(method: str) -> None:
    schedule = [64, 16, 16, 4] if method == "grid" else SCHEDULE
    model = pool(tiny_vit(depth=4), schedule, method)
    assert torch.equal(logits(through_pickle(model)), logits(model))


def test_a_copy_of_a_copy_unpools_and_pools_again() -> None:
    model = build("average")
    twin = through_pickle(through_pickle(model))
    pool(twin, [30] * 4, "k-means")
    assert torch.equal(logits(twin), logits(pool(tiny_vit(global_pool="avg"), [30] * 4, "k-means")))


CHILD = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.slow
def test_another_process_loads_the_pickle(tmp_path: Path) -> None:
    model = build("Beit, average")
    torch.save(model, tmp_path / "model.pt")
    torch.save(images(3), tmp_path / "images.pt")
    names = [str(tmp_path / name) for name in ("model.pt", "images.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", CHILD, *names], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(model))


def replicated(model: nn.Module) -> nn.Module:
    """What `nn.DataParallel` makes for another device, with parameters of zero."""
    modules = list(model.modules())
    replicas = {id(module): module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        replica = replicas[id(module)]
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else replicas[id(child)])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else torch.zeros_like(parameter))
    return replicas[id(model)]


@pytest.mark.parametrize("variant", MODELS)
def test_a_replica_runs_on_its_own_parameters(variant: str) -> None:
    model = build(variant)
    expected = logits(model)
    replica = replicated(model)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in zeroed.parameters():
            parameter.zero_()
    assert torch.equal(logits(replica), logits(zeroed))
    assert torch.equal(logits(model), expected)


def test_a_replica_of_a_replica_is_bound_to_itself() -> None:
    model = build("Beit, average")
    replica = replicated(replicated(model))
    bound = [
        (module, value)
        for module in replica.modules()
        for value in vars(module).values()
        if hasattr(value, "func")
    ]
    assert len(bound) == 4 * 4 + 2 + 5  # blocks and their biases, norm, model
    assert all(value.args[0] is module for module, value in bound)
