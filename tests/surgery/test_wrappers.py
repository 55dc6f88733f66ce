"""Wrappers around a model: what is asked of them is asked of the Vision Transformer inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers.images import class_folders
from tests.helpers.models import tiny_vit
from tests.helpers.selection import some_of
from tpcli import count_flops, data, evaluate, find, pool, trace, unpool
from tpcli.errors import UserError
from tpcli.models.load import LoadedModel, data_config
from tpcli.surgery import pooling_spec


class Own(nn.Module):
    """One's own module around a ViT, whose answers are the ViT's, or those of a head here."""

    def __init__(self, vit: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.vit = vit
        self.last = head or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.last(self.vit(x))


WRAPPERS: dict[str, Any] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "ModelEmaV3": ModelEmaV3,
    "own": Own,
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two of the four classes of the model, which are not its first two."""
    return class_folders(tmp_path_factory.mktemp("data"), classes=("c", "d"), per_class=3)


def named_vit(**arguments: Any) -> nn.Module:
    overlay = {"label_names": ["a", "b", "c", "d"], "mean": (0.1, 0.2, 0.3)}
    return tiny_vit(num_classes=4, pretrained_cfg_overlay=overlay, **arguments)


@pytest.mark.parametrize("wrapper", some_of(set(WRAPPERS) - {"compiled"}, WRAPPERS))
def test_wrapped_models_are_measured_as_what_they_hold(wrapper: str, labelled: Path) -> None:
    model = pool(named_vit(), "r:4")
    wrapped = WRAPPERS[wrapper](model)
    assert data_config(wrapped) == data_config(model)
    images = data.create(str(labelled), data_config(model))
    expected = evaluate(model, images, device="cpu")
    assert evaluate(wrapped, images, device="cpu").loss == pytest.approx(expected.loss)
    assert count_flops(wrapped) == count_flops(model)
    assert pooling_spec(wrapped) == pooling_spec(find(wrapped))
    with trace(wrapped) as record:
        wrapped(torch.zeros(1, 3, 32, 32))
    assert len(record.merges) == 4
    larger = data.create(str(labelled), {**data_config(model), "input_size": (3, 48, 48)})
    with pytest.raises(UserError, match="3x48x48"):
        evaluate(wrapped, larger, device="cpu")
    with pytest.raises(UserError, match="find"):
        LoadedModel(wrapped, "m", data_config(model))
    assert pooling_spec(unpool(wrapped)) is None


def test_a_head_around_a_model_answers_by_position(labelled: Path) -> None:
    model = tiny_vit(num_classes=0)
    images = data.create(str(labelled), data_config(model))
    torch.manual_seed(0)
    fits = Own(model, nn.Linear(48, 2)).eval()
    assert evaluate(fits, images, device="cpu").count == 6
    for wrong in (Own(model, nn.Linear(48, 5)), Own(named_vit(), nn.Linear(4, 3))):
        with pytest.raises(UserError, match=r"[53] numbers"):
            evaluate(wrong, images, device="cpu")


def test_a_head_put_on_by_hand_has_its_own_number_of_classes(labelled: Path) -> None:
    model: Any = tiny_vit(num_classes=1000)
    model.head = nn.Linear(48, 2)
    images = data.create(str(labelled), data_config(model))
    assert evaluate(model, images, device="cpu").count == 6
    model.head = nn.Linear(48, 5)
    with pytest.raises(UserError, match="5"):
        evaluate(model, images, device="cpu")
