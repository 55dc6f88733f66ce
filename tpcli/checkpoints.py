"""Checkpoint files as people have them: read without running code, unwrapped, fitted to a model."""

from __future__ import annotations

import argparse
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from tpcli.errors import UserError
from tpcli.unwrapping import adopt_head, find_weights

HEADS = ("head", "head_dist")
"""What timm's models call their classifiers."""


def load_weights(
    model: nn.Module,
    path: Path,
    adapt_head: bool = False,
    translate: Callable[[Any], Any] | None = None,
) -> None:
    """Load a checkpoint file into `model`, through timm's own key clean-up and resampling.

    Args:
        adapt_head: give the model as many classes as the checkpoint has. Without it a model that
            has no head leaves the checkpoint's.
        translate: what is in the file to something under timm's names.

    Raises:
        UserError: the file is missing, holds more than weights, or its keys or shapes don't fit.
    """
    own = model.state_dict()
    content = read_file(path)
    found = find_weights(translate(content) if translate else content, own.keys())
    if found is None:
        raise UserError(
            f"checkpoint {path} holds no state_dict; save the model's state_dict alone."
        )
    _check_plain(found.weights, path)
    head = own.get("head.weight")
    state = found.weights
    if head is not None and head.ndim == 2:
        state = adopt_head(found, own.keys(), "head", (head.shape[0], head.shape[1]))
    try:
        state = converted(clean_state_dict(state), model)
    except Exception as error:  # timm reshapes by what it takes the names to mean
        raise UserError(
            f"checkpoint {path} does not fit: {error}. Check the architecture."
        ) from error
    weight = state.get("head.weight")
    classes = weight.shape[0] if weight is not None and weight.ndim == 2 else 0
    if adapt_head and classes and classes != model.num_classes:
        model.reset_classifier(classes)  # type: ignore[operator]
        own = model.state_dict()
    elif not model.num_classes:
        state = {k: v for k, v in state.items() if k in own or k.split(".")[0] not in HEADS}
    _check_fit(own, state, path)
    model.load_state_dict(state)


def read_file(path: Path) -> Any:
    """What is in a checkpoint file, its tensors on the CPU.

    Beside tensors only what can't do harm is unpickled: options of a training script
    (argparse.Namespace), paths, and NumPy's numbers and arrays.

    Raises:
        UserError: the file is missing, or can't be read, or holds code.
    """
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder; give the file with the weights in it.")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; check the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with _harmless():
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"checkpoint {path} can't be read: {error.strerror}.") from error
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise UserError(
            f"checkpoint {path} is no file of plain weights, and nothing else is ever unpickled; "
            "save its state_dict as .safetensors or with torch.save."
        ) from error


def _harmless() -> AbstractContextManager[Any]:
    """Lets torch.load build what scripts keep beside weights, under all names that it had."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, np.ndarray, np.dtype]
    allowed += {type(np.dtype(code)) for code in np.typecodes["All"]}
    for module in ("numpy.core", "numpy._core"):
        allowed += [(scalar, f"{module}.multiarray.scalar")]
        allowed += [(array, f"{module}.multiarray._reconstruct")]
    for module in ("pathlib", "pathlib._local"):
        for name in ("Path", "PosixPath", "PurePosixPath"):
            allowed.append((pathlib.PurePosixPath, f"{module}.{name}"))
        for name in ("WindowsPath", "PureWindowsPath"):
            allowed.append((pathlib.PureWindowsPath, f"{module}.{name}"))
    return torch.serialization.safe_globals(allowed)


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


def _check_plain(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise where a tensor is of a kind that can't be copied into a weight."""
    for key, value in weights.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "meta" if value.is_meta else "sparse"
            raise UserError(
                f"checkpoint {path} can't be used: {key} is a {kind} tensor; save dense weights."
            )


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise UserError(
            f"checkpoint {path} does not fit: missing {_some(missing)}; unexpected "
            f"{_some(unexpected)}. Check the architecture and the number of classes."
        )
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in own.items()
        if state[key].shape != value.shape
    ]
    if wrong:
        raise UserError(
            f"checkpoint {path} does not fit: shape of {_some(wrong)}. "
            "Check the architecture, the image size and the number of classes."
        )
    kinds = [
        f"{key} {state[key].dtype}"
        for key, value in own.items()
        if value.is_floating_point() != state[key].is_floating_point()
    ]
    if kinds:
        raise UserError(
            f"checkpoint {path} can't be used: {_some(kinds)} instead of floating-point numbers; "
            "save the weights before they are quantized."
        )


def _some(keys: Sequence[str], limit: int = 8) -> str:
    if not keys:
        return "none"
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(keys[:limit]) + more
