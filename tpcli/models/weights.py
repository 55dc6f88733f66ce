"""Checkpoint files as people have them: read without running code, unwrapped, fitted to a model."""

from __future__ import annotations

import argparse
import inspect
import pathlib
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from tpcli.errors import UserError

AVERAGED = re.compile(r"(^|[._])(ema|teacher|averaged?|swa)([._]|$)", re.IGNORECASE)
HEAD = re.compile(r"(^|[._])(head|classifier|fc|linear|logits)(\.\d+)?\.$")
PRETRAINING = re.compile(r"^(mask(ed)?_(token|embed)\w*$|decoder[._]|lm_head\.)")
"""Weights beside a backbone that only its pretraining needs: masked embeddings and decoders."""
CHUNKED = re.compile(r"(?<![^.])blocks\.(\d+)\.(\d+)\.")
"""Blocks in chunks, as DINOv2 trains them."""
TORCHVISION = {
    r"encoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
    r"(blocks\.\d+)\.ln_([12])\.": r"\1.norm\2.",
    r"(blocks\.\d+)\.self_attention\.in_proj_": r"\1.attn.qkv.",
    r"(blocks\.\d+)\.self_attention\.out_proj\.": r"\1.attn.proj.",
    r"(blocks\.\d+)\.mlp\.(0|linear_1)\.": r"\1.mlp.fc1.",
    r"(blocks\.\d+)\.mlp\.(3|linear_2)\.": r"\1.mlp.fc2.",
    r"encoder\.pos_embedding$": "pos_embed",
    r"encoder\.ln\.": "norm.",
    r"conv_proj\.": "patch_embed.proj.",
    r"class_token$": "cls_token",
    r"heads\.head\.": "head.",
}
"""Names of torchvision's VisionTransformer, and timm's."""
DEEPEST = 10
"""Levels of dicts in which weights are looked for."""


@dataclass(frozen=True)
class Found:
    """Weights without wrapping and prefix, and the other tensors of the file, by where they are."""

    weights: dict[str, Tensor]
    beside: dict[str, Tensor] = field(default_factory=dict)


def find_weights(content: Any, names: Collection[str]) -> Found | None:
    """The weights in what a file holds, or None where it holds no tensors by name.

    names: of the model's own weights. Where fewer than half are found the largest dict of tensors
    is taken as it is: names of original releases are translated later.
    """
    dicts = list(_dicts_of_tensors(content))
    if not dicts:
        return None
    places = _places(dicts, names)
    if not places:
        renamed = [(where, _renamed(state)) for where, state in dicts]
        places = _places(renamed, names)
        dicts = renamed if places else dicts
    where, prefix, _ = max(
        places, key=lambda p: (p[2], bool(AVERAGED.search(f"{p[0]}.{p[1]}"))), default=(None, "", 0)
    )
    if where is None:
        where = max(dicts, key=lambda d: len(d[1]))[0]
    weights: dict[str, Tensor] = {}
    beside: dict[str, Tensor] = {}
    for place, state in dicts:
        for key, value in state.items():
            if place == where and key.startswith(prefix):
                weights[key.removeprefix(prefix)] = value
            else:
                beside[f"{place}.{key}".lstrip(".")] = value
    return Found(weights, beside)


def _dicts_of_tensors(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All dicts inside `content` that have tensors by name, each with the keys that lead to it."""
    waiting, seen = deque([("", 0, content)]), set()
    while waiting:
        where, depth, value = waiting.popleft()
        if id(value) in seen or depth > DEEPEST:  # a dict may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            state = {k: v for k, v in value.items() if isinstance(k, str) and _is_tensor(v)}
            if state:
                yield where, state
            inside: Any = value.items()
        elif isinstance(value, list | tuple):
            inside = enumerate(value)
        else:
            continue
        waiting.extend((f"{where}.{key}".lstrip("."), depth + 1, item) for key, item in inside)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with torchvision's names translated, and blocks in chunks numbered through."""
    if any("encoder_layer_" in key for key in state):
        names = {key: key for key in state}
        for old, new in TORCHVISION.items():
            names = {key: re.sub(rf"(?<![^.]){old}", new, name) for key, name in names.items()}
        return {names[key]: value for key, value in state.items()}
    found = {match.groups() for match in map(CHUNKED.search, state) if match}
    places = sorted((int(chunk), int(block)) for chunk, block in found)
    if len({block for _, block in places}) < len(places):  # each chunk is numbered from 0
        number = {place: i for i, place in enumerate(places)}
    else:
        number = {place: place[1] for place in places}
    return {
        CHUNKED.sub(lambda m: f"blocks.{number[int(m[1]), int(m[2])]}.", key): value
        for key, value in state.items()
    }


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _places(
    dicts: Sequence[tuple[str, Mapping[str, Tensor]]], names: Collection[str]
) -> list[tuple[str, str, int]]:
    """Where the model's names are: the keys to a dict, the prefix in it, and how many."""
    return [(where, prefix, n) for where, state in dicts for prefix, n in _prefixes(state, names)]


def _prefixes(state: Mapping[str, Tensor], names: Collection[str]) -> list[tuple[str, int]]:
    """What stands before the model's names in these keys, and before how many of them."""
    count: Counter[str] = Counter()
    for key in state:
        start = 0
        while start >= 0:
            if key[start:] in names:
                count[key[:start]] += 1
            start = key.find(".", start) + 1 or -1
    least = min(len(state), len(names)) / 2
    return [(prefix, n) for prefix, n in count.items() if n >= least]


def adopt_head(
    found: Found, names: Collection[str], name: str, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """The weights, with a head that the file keeps apart from them, if there is no doubt which.

    It is one linear layer on its own, which reads as many channels as the model's head, and is
    called a head or has as many classes.

    names: of the model's own weights. name: of its head. shape: of that head's weight.
    """
    if f"{name}.weight" in found.weights:
        return found.weights
    others = found.beside | {k: v for k, v in found.weights.items() if k not in names}
    layers = [
        key.removesuffix("weight")
        for key, value in others.items()
        if re.search(r"(^|\.)weight$", key) and value.ndim == 2 and value.shape[1] == shape[1]
    ]
    heads = [
        layer
        for layer in layers
        if _stands_alone(layer, others)
        and (HEAD.search(layer) or others[f"{layer}weight"].shape[0] == shape[0])
    ]
    if len(heads) != 1:
        return found.weights
    weights = {k: v for k, v in found.weights.items() if not k.startswith(heads[0])}
    return weights | {f"{name}.{part}": others[heads[0] + part] for part in ("weight", "bias")}


def _stands_alone(layer: str, others: Collection[str]) -> bool:
    """Whether the layer, or the sequence that it is in, has one weight, one bias and no more."""
    whole = re.sub(r"\d+\.$", "", layer)
    return {key for key in others if key.startswith(whole)} == {f"{layer}weight", f"{layer}bias"}


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
        state = clean_state_dict(state)
        if "register_tokens" in state:  # by which timm does not know a DINOv2, but by this
            state.setdefault("mask_token", torch.zeros(1))
        state = converted(state, model)
    except Exception as error:  # timm reshapes by what it takes the names to mean
        raise UserError(
            f"checkpoint {path} does not fit: {error}. Check the architecture."
        ) from error
    state = {k: v for k, v in state.items() if k in own or not PRETRAINING.match(k)}
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
            f"{_some(unexpected)}. Check the architecture and the number of classes (0 for a "
            "checkpoint without a head)."
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
