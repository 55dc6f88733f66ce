"""Checkpoint files as people have them: read without running code, unwrapped, fitted to a model."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict, load_state_dict
from torch import Tensor, nn

from tpcli.errors import UserError

WRAPPERS = ("teacher", "model", "state_dict", "module")
"""Keys under which training scripts keep the weights, beside those that timm knows."""
BACKBONE = "backbone."
"""Prefix of the model in self-supervised checkpoints; what is beside it is the training's own."""


def load_weights(model: nn.Module, path: Path, adapt_head: bool = False) -> None:
    """Load a checkpoint file into `model`, through timm's own key clean-up and resampling.

    Args:
        adapt_head: give the model as many classes as the checkpoint has.

    Raises:
        UserError: the file is missing, holds more than weights, or its keys or shapes don't fit.
    """
    state = converted(read_weights(path), model)
    classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    if adapt_head and classes and classes != model.num_classes:
        model.reset_classifier(classes)  # type: ignore[operator]
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise UserError(
            f"checkpoint {path} does not fit: missing {_some(missing)}; unexpected "
            f"{_some(unexpected)}. Check the architecture and --num-classes."
        )
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in own.items()
        if state[key].shape != value.shape
    ]
    if wrong:
        raise UserError(
            f"checkpoint {path} does not fit: shape of {_some(wrong)}. "
            "Check the architecture, --img-size and --num-classes."
        )
    model.load_state_dict(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, without wrappings and prefixes of training scripts.

    Beside tensors only the options of a training script (argparse.Namespace) are unpickled.

    Raises:
        UserError: the file is missing, or holds no weights, or holds code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; check the path.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise UserError(
            f"checkpoint {path} is no file of plain weights, and nothing else is ever unpickled; "
            "save its state_dict as .safetensors or with torch.save."
        ) from error
    while isinstance(state, dict):
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(
            f"checkpoint {path} holds no state_dict; save the model's state_dict alone."
        )
    state = clean_state_dict(state)
    inside = {k.removeprefix(BACKBONE): v for k, v in state.items() if k.startswith(BACKBONE)}
    return inside or state


def converted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state` under the names and in the shapes of timm, by the filter of the model's own module.

    Names of original releases are translated and position embeddings resampled.
    """
    convert = sys.modules[type(model).__module__].checkpoint_filter_fn
    options = {}
    if "adapt_layer_scale" in inspect.signature(convert).parameters:
        options["adapt_layer_scale"] = True  # gamma_1 of DeiT-III becomes ls1.gamma
    weights: dict[str, Tensor] = convert(dict(state), model, **options)
    return weights


def _some(keys: Sequence[str], limit: int = 8) -> str:
    if not keys:
        return "none"
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
