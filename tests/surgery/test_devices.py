"""Nothing that runs on the model's device needs what MPS lacks: float64, and extremes of int64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.images import class_folders
from tests.helpers.models import images, tiny_vit
from tpcli import evaluate, pool
from tpcli.data import create
from tpcli.pooling import methods


class LikeMps(TorchDispatchMode):
    """Refuses what MPS refuses, by the messages of torch 2.9."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and value.dtype is torch.float64:
                raise TypeError(f"{func}: MPS doesn't support float64")
        name = func.overloadpacket.__name__
        reduces = name.startswith("scatter_reduce") and {"amin", "amax"} & set(args)
        if reduces and args[0].dtype is torch.int64:
            raise NotImplementedError(f"{func}: MPS has no amin and amax of int64")
        return out


def test_the_mode_refuses() -> None:
    index = torch.zeros(3, dtype=torch.int64)
    with LikeMps(), pytest.raises(NotImplementedError):
        index.scatter_reduce(0, index, index, "amin")
    with LikeMps(), pytest.raises(TypeError):
        torch.ones(2).double()


@pytest.mark.parametrize("method", [m.name for m in methods()])
def test_methods(method: str) -> None:
    schedule = [64, 16, 16, 4] if method == "grid" else [56, 40, 20, 4]
    model = pool(tiny_vit(), schedule, method)
    with LikeMps():
        model(images()).sum().backward()


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_relpos_small_patch16_224"])
def test_positions_and_biases(name: str) -> None:
    model = pool(tiny_vit(name), [56, 40, 20, 4])
    with LikeMps():
        model(images()).sum().backward()


@pytest.mark.parametrize("reduce", ["mean", "significance", "medoid"])
@pytest.mark.parametrize("start", ["top-k", "matching", "even", "ward"])
def test_starts_and_means(start: str, reduce: str) -> None:
    model = pool(tiny_vit(), [56, 40, 20, 4], "k-medoids", start=start, reduce=reduce)
    with LikeMps():
        model(images()).sum().backward()


def test_evaluation(tmp_path: Path) -> None:
    model = tiny_vit()
    folder = class_folders(tmp_path / "set", per_class=4, suffix="png")
    config = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    data = create(str(folder), config)
    with LikeMps():
        assert evaluate(model, data).count == 40
