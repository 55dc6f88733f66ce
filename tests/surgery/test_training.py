"""Training, checkpointed blocks, other number formats, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import VARIANTS, images, tiny_vit
from tests.helpers.selection import some_of
from tpcli import pool, unpool
from tpcli.pooling import Assignment
from tpcli.surgery import TokenPooling

SCHEDULE = [50, 40, 30, 20]

kinds = pytest.mark.parametrize("variant", ["class token", "average", "map", "Eva"])
options = pytest.mark.parametrize(
    "chosen",
    [
        {"position": "block"},
        {"position": "block", "weights": "significance", "metric": "keys"},
        {"position": "attention", "method": "k-medoids"},
    ],
    ids=["block", "scores", "attention"],
)


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """Gradients of one loss over several forward passes."""
    model.zero_grad()
    loss = sum(model(batch).square().sum() for batch in batches)
    assert isinstance(loss, Tensor)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor], atol: float = 0.0) -> None:
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-5 if atol else 0, atol=atol)


@kinds
@options
def test_gradient_checkpointing_gives_the_same_gradients(
    variant: str, chosen: dict[str, Any]
) -> None:
    model = pool(tiny_vit(**VARIANTS[variant]), SCHEDULE, **chosen).train()
    plain = gradients(model, images(2))
    assert all(g.abs().sum() > 0 for name, g in plain.items() if "blocks" in name and "mlp" in name)
    model.set_grad_checkpointing(True)
    assert_same(plain, gradients(model, images(2)))


@pytest.mark.long
@kinds
@options
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_before_one_backward(
    variant: str, chosen: dict[str, Any], checkpointing: bool
) -> None:
    model = pool(tiny_vit(**VARIANTS[variant]), SCHEDULE, **chosen).train()
    first, second = images(2, seed=1), images(2, seed=2)
    one, two = gradients(model, first), gradients(model, second)
    model.set_grad_checkpointing(checkpointing)
    both = gradients(model, first, second)
    for name, gradient in both.items():
        expected = one[name] + two[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def pooling_layers(model: nn.Module) -> list[TokenPooling]:
    return [module for module in model.modules() if isinstance(module, TokenPooling)]


@options
def test_gradients_follow_the_means(chosen: dict[str, Any]) -> None:
    """Every parameter has one, and they equal a numerical derivative at a fixed assignment."""
    model = pool(tiny_vit(), SCHEDULE, **chosen).train()
    first: list[Assignment] = []
    replay: list[Assignment] = []

    for layer in pooling_layers(model):
        method = layer.method

        def fixed(z: Tensor, k: int, real: Any = method, **available: Any) -> Assignment:
            if replay:
                return replay.pop(0)
            first.append(real(z, k, **available))
            return first[-1]

        layer.method = fixed  # type: ignore[assignment]
    found = gradients(model, images(2))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert len(first) == 4
    parameter = model.pos_embed
    direction = torch.randn_like(parameter)
    step = 1e-3
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            replay.extend(first)
            parameter.add_(sign * step * direction)
            values.append(model(images(2)).double().square().sum())
            parameter.sub_(sign * step * direction)
            assert not replay
    slope = (values[0] - values[1]) / (2 * step)
    along = (found["pos_embed"] * direction).sum().double()
    torch.testing.assert_close(slope, along, rtol=1e-2, atol=0)


def test_train_and_eval_reach_the_layers_and_agree_without_dropout() -> None:
    model = pool(tiny_vit(), SCHEDULE)
    layers = pooling_layers(model)
    evaluated = model(images())
    model.train()
    assert all(layer.training for layer in layers)
    assert torch.equal(model(images()), evaluated)
    assert not any(layer.training for layer in model.eval().modules())


def test_pooling_a_model_in_training_leaves_it_in_training() -> None:
    model = pool(tiny_vit().train(), SCHEDULE)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("position", ["block", "attention"])
def test_drop_path_and_dropout(position: str) -> None:
    arguments = {"drop_path_rate": 0.3, "proj_drop_rate": 0.1, "patch_drop_rate": 0.25}
    model = pool(tiny_vit(**arguments), SCHEDULE, position=position).train()
    assert all(g.isfinite().all() for g in gradients(model, images(4)).values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_of_one(variant: str) -> None:
    model = pool(tiny_vit(**VARIANTS[variant]), SCHEDULE)
    batch = images(4)
    with torch.no_grad():
        together = model(batch)
        alone = torch.cat([model(image.unsqueeze(0)) for image in batch])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["class token", "average", "map", "ResPostBlock"])
@options
def test_autocast(monkeypatch: pytest.MonkeyPatch, variant: str, chosen: dict[str, Any]) -> None:
    """Distances, weights and sizes are float32; the result is near that of float32."""
    model = tiny_vit(**VARIANTS[variant])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain_dtype = model(images()).dtype
    pool(model, SCHEDULE, **chosen)
    seen: set[torch.dtype] = set()
    autocast: set[bool] = set()
    for layer in pooling_layers(model):
        method = layer.method

        def spy(z: Tensor, k: int, real: Any = method, **available: Any) -> Assignment:
            autocast.add(torch.is_autocast_enabled("cpu"))
            seen.update({z.dtype, available["weights"].dtype, available["sizes"].dtype})
            return real(z, k, **available)

        layer.method = spy  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images())
        loss = output.float().square().sum()
    loss.backward()
    assert seen == {torch.float32}
    assert autocast == {False}
    assert output.dtype == plain_dtype
    assert output.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@options
def test_a_model_in_another_format(dtype: torch.dtype, chosen: dict[str, Any]) -> None:
    model = pool(tiny_vit(), SCHEDULE, **chosen).to(dtype)
    with torch.no_grad():
        output = model(images().to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()


def test_unpool_after_training_keeps_the_trained_weights() -> None:
    model = pool(tiny_vit(), SCHEDULE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(images()).square().sum().backward()
    optimizer.step()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    unpool(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.items())


@pytest.mark.long
@pytest.mark.parametrize("method", some_of(["ward"], ["k-medoids", "k-means", "ward"]))
def test_export(method: str) -> None:
    model = pool(tiny_vit(global_pool="avg"), SCHEDULE, method)
    with torch.no_grad():
        exported = torch.export.export(model, (images(2),)).module()
        torch.testing.assert_close(exported(images(2)), model(images(2)), rtol=0, atol=1e-5)
