"""Write a model as a folder in timm's layout, after a check that timm builds the same from it."""

from __future__ import annotations

import re
import types
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from tpcli.errors import UserError, first_line
from tpcli.surgery import find, pooling_spec
from tpcli.surgery.geometry import POOLING_NAME
from tpcli.surgery.patching import own_method
from tpcli.system.files import check_output, replacing

FOREIGN = re.compile(r"\.(base_layer|lora_\w+|parametrizations|_packed_params)(\.|$)")
"""In names of weights that adapters, parametrizations and quantization put into a model."""
DROPS = (nn.Dropout, DropPath, nn.Identity)
"""Modules that do nothing in eval mode."""
TRAINING = frozenset(
    ("training", "drop_prob", "p", "inplace", "momentum", "grad_checkpointing", "fused_attn")
)
"""Attributes of modules that change no answer."""
WRAPPED = "._checkpoint_wrapped_module"
"""In names of modules inside torch's checkpoint wrappers, which the names of weights leave out."""


def save(model: nn.Module, folder: Path, force: bool = False, **extra: Any) -> None:
    """Write a folder in timm's local-dir layout, atomically.

    Plain timm loads it unpooled; tpcli pools it again, from the key `token_pooling` of
    `config.json`. `extra` adds keys there, but for None.

    Raises:
        UserError: the folder exists and `force` is off, the model is none of timm's or was built
            with arguments that JSON can't hold, or timm would build another one from the folder;
            names the weight or the module.
    """
    check_output(folder, force, is_folder=True)
    if find(model) is not model:
        raise UserError(
            f"{type(model).__name__} only holds a timm model, and nothing else would be saved; "
            "save that one, tpcli.find(model)."
        )
    pretrained_cfg: Any = getattr(model, "pretrained_cfg", None)
    if not pretrained_cfg:
        raise UserError(
            f"the model can't be saved: this {type(model).__name__} was not built by "
            "timm.create_model, so timm would not know how to build it again."
        )
    weights = _weights(model)
    spec = pooling_spec(model)
    config = {key: value for key, value in extra.items() if value is not None}
    labels = pretrained_cfg.get("label_names")
    if labels:
        config["label_names"] = labels
    if spec is not None:
        config["token_pooling"] = spec.to_dict()
    with replacing(folder) as fresh:
        fresh.mkdir(parents=True, exist_ok=True)
        try:
            save_config_for_hf(model, str(fresh / "config.json"), model_config=config)
            with torch.device("meta"):
                rebuilt = timm.create_model(f"local-dir:{fresh}", pretrained=False)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise UserError(f"the model can't be saved: {first_line(error)}.") from error
        difference = _difference(model, rebuilt)
        if difference:
            raise UserError(
                f"the model can't be saved, as timm would build another one from its config: "
                f"{difference}. Change the model by timm's own means (reset_classifier, "
                "set_input_size, arguments of create_model), or save its state_dict."
            )
        save_file(weights, fresh / "model.safetensors")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights, contiguous and none in the memory of another, as safetensors wants them."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if FOREIGN.search(name):
            raise UserError(
                f"the model can't be saved: its weight {name} is none of timm's; merge adapters "
                "(merge_and_unload) and parametrizations first, and save before quantizing."
            )
        if value.is_meta:
            raise UserError(
                f"the model can't be saved: its weight {name} is offloaded or was never loaded; "
                "remove the hooks that bring it in (accelerate's remove_hook_from_module), then "
                "save."
            )
        memory = value.untyped_storage().data_ptr()
        weights[name] = value.clone() if memory in seen else value
        weights[name] = weights[name].contiguous()
        seen.add(memory)
    return weights


def _difference(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """What sets `model` apart from the one that timm builds again, but for weights; None if none.

    Warns of forwards that were put on single modules, which no file holds.
    """
    own, theirs = model.state_dict(), rebuilt.state_dict()
    for name in sorted({**own, **theirs}):
        shapes = [tuple(s[name].shape) if name in s else None for s in (own, theirs)]
        if shapes[0] != shapes[1]:
            has, would = (f"has shape {shape}" if shape else "is missing" for shape in shapes)
            return f"its weight {name} {has}, where in timm's it {would}"
    ours, others = _modules(model), _modules(rebuilt)
    for name in sorted({**ours, **others}):
        one, other = ours.get(name), others.get(name)
        kinds = [type(module).__name__ if module else "nothing" for module in (one, other)]
        if all(module is None or isinstance(module, DROPS) for module in (one, other)):
            continue
        if one is None or other is None or type(one) is not type(other):
            return f"its {name or 'model'} is {kinds[0]}, where in timm's it is {kinds[1]}"
        if own_method(one, "forward") and name:
            warnings.warn(f"the forward that was put on {name} is not saved.", stacklevel=3)
        for attribute, value in vars(one).items():
            would_be = vars(other).get(attribute, value)
            if attribute not in TRAINING and _is_plain(value) and value != would_be:
                where = f"{name}.{attribute}".lstrip(".")
                return f"its {where} is {value!r}, where in timm's it is {would_be!r}"
    return None


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without pooling layers and checkpoint wrappers."""
    names = ((name.replace(WRAPPED, ""), module) for name, module in model.named_modules())
    return {name: module for name, module in names if POOLING_NAME not in name.split(".")}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | types.FunctionType | None)
