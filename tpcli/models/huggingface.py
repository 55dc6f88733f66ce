"""Model folders that transformers wrote: timm models inside its wrapper, and its own ViT."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpcli.errors import UserError
from tpcli.system.files import read_json

Weights = dict[str, Tensor]
LARGEST_EPS = 1e-5
"""Of a layer norm; timm's own is 1e-6, which rounds away whatever is smaller."""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
NAMES = {
    r"^embeddings\.cls_token": "cls_token",
    r"^embeddings\.position_embeddings": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^encoder\.layer\.(\d+)\.attention\.output\.dense": r"blocks.\1.attn.proj",
    r"^encoder\.layer\.(\d+)\.intermediate\.dense": r"blocks.\1.mlp.fc1",
    r"^encoder\.layer\.(\d+)\.output\.dense": r"blocks.\1.mlp.fc2",
    r"^encoder\.layer\.(\d+)\.layernorm_before": r"blocks.\1.norm1",
    r"^encoder\.layer\.(\d+)\.layernorm_after": r"blocks.\1.norm2",
    r"^layernorm\.": "norm.",
    r"^classifier\.": "head.",
}
QUERIES = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)$")


@dataclass(frozen=True)
class Description:
    """How timm builds a model of transformers.

    name, arguments: for `timm.create_model`. weights: the file. translate: its content to timm's
    names.
    """

    name: str
    arguments: dict[str, Any]
    weights: Path
    translate: Callable[[Weights], Weights]


def describe(folder: Path, config: Mapping[str, Any]) -> Description | None:
    """What the folder of a transformers model holds, or None where it is none.

    Raises:
        UserError: it is a model that timm has not; names its type.
    """
    kind = config.get("model_type")
    if kind is None:
        return None
    kinds: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
        "timm_wrapper": _wrapped,
        "vit": _vit,
    }
    if kind not in kinds:
        raise UserError(
            f"{folder} holds a {kind!r} model of transformers, which has no counterpart that tpcli "
            f"can load; use a model of type {' or '.join(kinds)}, or timm's own."
        )
    try:
        name, arguments = kinds[kind](folder, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} describes no {kind} model: {error}.") from error
    translate = _translated if kind == "vit" else dict
    return Description(name, arguments, _weights_file(folder), translate)


def _weights_file(folder: Path) -> Path:
    """Raises where the weights are in several files, or nowhere."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin; save the model there with "
        "its weights in one file (max_shard_size)."
    )


def _wrapped(folder: Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    has_head = "TimmWrapperModel" not in config.get("architectures", ())
    overlay = {**config.get("pretrained_cfg", {}), **_labels(config.get("label_names", ()))}
    overlay.pop("num_classes", None)
    return config["architecture"], {
        **(config.get("model_args") or {}),
        "num_classes": config["num_classes"] if has_head else 0,
        **({"pretrained_cfg_overlay": overlay} if overlay else {}),
    }


def _vit(folder: Path, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    activation, eps = config.get("hidden_act", "gelu"), float(config.get("layer_norm_eps", 1e-12))
    if activation not in ACTIVATIONS:
        raise ValueError(f"timm has no hidden_act {activation!r}")
    if eps > LARGEST_EPS:
        raise ValueError(f"layer_norm_eps {eps:g} is larger than {LARGEST_EPS:g}")
    classes = config.get("id2label", {})
    has_head = "ViTForImageClassification" in config.get("architectures", ())
    arguments = {
        "img_size": config["image_size"],
        "patch_size": config["patch_size"],
        "in_chans": config.get("num_channels", 3),
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "qkv_bias": config.get("qkv_bias", True),
        "num_classes": (len(classes) or 2) if has_head else 0,
        "pretrained_cfg_overlay": {
            **_preparation(folder),
            **_labels([classes[key] for key in sorted(classes, key=int)]),
        },
    }
    if activation != "gelu":
        arguments["act_layer"] = ACTIVATIONS[activation]
    return "vit_base_patch16_224", arguments


def _preparation(folder: Path) -> dict[str, Any]:
    """How transformers prepares images: both sides resized, nothing cropped."""
    file = folder / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    return {
        "mean": tuple(config.get("image_mean", (0.5,) * 3)),
        "std": tuple(config.get("image_std", (0.5,) * 3)),
        "interpolation": INTERPOLATIONS[config.get("resample", 2)],
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


def _labels(names: Any) -> dict[str, Any]:
    """Label names, but not those that transformers makes up."""
    made_up = all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
    return {} if made_up else {"label_names": list(names)}


def _translated(state: Weights) -> Weights:
    """transformers' names and layout to timm's: one matrix for queries, keys and values."""
    weights: Weights = {}
    for key, value in state.items():
        name = key.removeprefix("vit.")
        query = QUERIES.match(name)
        if query:
            parts = (state[key.replace(".query.", f".{p}.")] for p in ("query", "key", "value"))
            weights[f"blocks.{query[1]}.attn.qkv.{query[2]}"] = torch.cat(list(parts))
        elif not re.search(r"\.attention\.attention\.(key|value)\.|^pooler\.|mask_token", name):
            for old, new in NAMES.items():
                name = re.sub(old, new, name)
            weights[name] = value
    return weights
