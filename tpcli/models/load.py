"""MODEL specs: from what the user typed to a timm model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from torch import nn

from tpcli.config import specs
from tpcli.errors import TpcliError, UserError, did_you_mean, first_line
from tpcli.schedules.resolve import pool
from tpcli.surgery import PoolingSpec, check_supported, unpooled
from tpcli.surgery.geometry import input_size, patch_tokens, vit_of
from tpcli.system.files import read_json

from .huggingface import describe
from .weights import load_weights

DEMO = Path(__file__).parents[1] / "demo" / "model"
SOURCES = (".py", ".c", ".h")


@dataclass(frozen=True)
class LoadedModel:
    """A model, the name it goes by, and how its images are prepared.

    made_on: what its folder remembers of images that it was trained on, or its weights chosen
    (`tpcli.data.chosen_on`).
    """

    model: nn.Module
    name: str
    data_config: dict[str, Any]
    made_on: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if vit_of(self.model) is not self.model:
            raise UserError(
                f"{type(self.model).__name__} only holds a timm model; give that one, "
                "tpcli.find(model)."
            )


def load(
    spec: str = "demo",
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    img_size: int | None = None,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a Vision Transformer; pooled where its folder or its repository says so.

    Args:
        spec: `demo`, a timm name, `hf-hub:org/name`, or a folder in timm's local-dir layout or
            written by transformers (`TimmWrapper` and `ViT`).
        checkpoint: weights to load on top, .safetensors or a .pth of plain weights. Its number of
            classes becomes the model's unless `num_classes` is given.
        pretrained: take pretrained weights (not with a checkpoint).
        model_kwargs: more arguments for `timm.create_model`.

    Raises:
        UserError: the model is unknown or no ViT, or weights don't fit; names the keys.
    """
    arguments = dict(model_kwargs or {})
    if img_size is not None:
        arguments["img_size"] = img_size
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    timm_name, folder = _timm_name(spec)
    config: dict[str, Any] = {}
    if folder is not None:
        config = _read_config(folder / "config.json")
    elif timm_name.startswith(specs.HUB):
        config = _hub_config(timm_name, arguments)
    else:
        _check_architecture(timm_name, arguments)
    use_pretrained = pretrained and checkpoint is None
    foreign = None if folder is None else describe(folder, config)
    if foreign is None:
        model = _create(spec, timm_name, use_pretrained, arguments)
    else:
        model = _create(spec, foreign.name, False, {**foreign.arguments, **arguments})
        if use_pretrained:
            load_weights(model, foreign.weights, translate=foreign.translate)
    check_supported(model)
    if img_size is not None:
        _check_image_size(model)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint), adapt_head=num_classes is None)
    stored = config.get("token_pooling")
    if stored is not None:
        remembered = PoolingSpec.from_dict(stored)
        pool(model, remembered.schedule.resized(patch_tokens(model)), remembered.options)
    made_on = config.get("made_on") if use_pretrained else None
    return LoadedModel(
        model,
        specs.display_name(spec),
        data_config(model),
        tuple(made_on) if isinstance(made_on, list) else (),
    )


def _check_image_size(model: nn.Module) -> None:
    """Raise where patches do not cover the image: timm would leave out the last rows and columns.

    Raises:
        UserError: names a size that fits.
    """
    stem: Any = getattr(model, "patch_embed", None)
    patch = getattr(stem, "patch_size", None)
    if patch is None or getattr(stem, "dynamic_img_pad", False) or hasattr(stem, "backbone"):
        return
    _, *sides = input_size(model)
    for side, step in zip(sides, patch, strict=True):
        if side % step:
            raise UserError(
                f"`img_size={side}` is not a whole number of patches of {step} pixels; use "
                f"{max(step, side - side % step)} or {side - side % step + step}."
            )


def data_config(model: nn.Module) -> dict[str, Any]:
    """How images for `model` are prepared: timm's config, at the size that FLOPs are counted at."""
    model = vit_of(model)
    size = input_size(model)
    config: dict[str, Any] = {**resolve_input_data_config(model), "input_size": size}
    for key in ("mean", "std"):
        values = config[key]
        if len(values) != size[0]:  # a grey model takes the mean of the colours', as in timm
            config[key] = (sum(values) / len(values),) * size[0]
    return config


def told_apart(loaded: Mapping[str, LoadedModel]) -> list[LoadedModel]:
    """Models by the spec each was loaded from; those of one name go by their spec instead."""
    names = [model.name for model in loaded.values()]
    return [
        replace(model, name=spec) if names.count(model.name) > 1 else model
        for spec, model in loaded.items()
    ]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over all weights and their names."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        flat = value.detach().cpu().contiguous().reshape(-1)  # 0-dim tensors have no bytes to view
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def code_version(is_trained: bool = False) -> str:
    """A hash of the sources that decide what is measured, with those of training if asked for.

    It differs where C kernels run from where they don't.
    """
    from tpcli.pooling.backends import c as c_kernels

    package = Path(__file__).parents[1]
    aside = {"cli", "report"} | (set() if is_trained else {"finetune"})
    digest = hashlib.sha256(b"" if c_kernels.kernels is None else b"loops")
    for path in sorted(p for p in package.rglob("*") if p.suffix in SOURCES):
        if path.relative_to(package).parts[0] not in aside:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def architecture(model: nn.Module) -> str:
    """A hash of all modules with their settings, such as the number of heads, which the weights
    and `repr` don't tell."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        settings = {
            key: value
            for key, value in sorted(vars(module).items())
            if key != "training" and _is_setting(value)
        }
        digest.update(repr((name, type(module).__qualname__, settings)).encode())
    return digest.hexdigest()


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    return is_dataclass(value) or isinstance(value, bool | int | float | str | None | torch.dtype)


def model_identity(model: nn.Module) -> dict[str, Any]:
    """What determines a model's answers: weights, architecture and code, without its pooling."""
    with unpooled(model):
        return {
            "weights": weights_hash(model),
            "architecture": architecture(model),
            "code": code_version(),
            "versions": [torch.__version__, timm.__version__],
        }


def _timm_name(spec: str) -> tuple[str, Path | None]:
    """The name for `timm.create_model`, and the folder if it is one."""
    specs.check_model(spec)
    if spec == specs.DEMO:
        return f"local-dir:{DEMO}", DEMO
    if specs.is_plain(spec) or spec.startswith(specs.HUB):
        return spec, None
    path = Path(spec.removeprefix(specs.LOCAL))
    return f"local-dir:{path.resolve()}", path


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} describes no model: it holds no object with an architecture.")
    return config


def _hub_config(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a timm model on the hub."""
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.partition(":")[2].partition("@")
    try:
        file = hf_hub_download(
            repository,
            "config.json",
            revision=revision or None,
            cache_dir=arguments.get("cache_dir"),
        )
    except Exception as error:
        raise _not_fetched(name, error) from error
    config = _read_config(Path(file))
    if "model_type" in config:
        raise UserError(
            f"model {name!r} is one of transformers; save it to a folder (save_pretrained) and "
            "give that."
        )
    return config


def _check_architecture(name: str, arguments: Mapping[str, Any]) -> None:
    """Fail before any download where the name is unknown or the class can't be pooled."""
    if not timm.is_model(name):
        bare = name.partition(".")[0]
        raise UserError(
            f"model {name!r} is unknown to timm {timm.__version__}, and no such folder exists."
            f"{did_you_mean(bare, timm.list_models())}"
        )
    tag = name.partition(".")[2]
    if tag and name not in timm.list_models(pretrained=True):
        known = timm.list_models(name.partition(".")[0] + ".*", pretrained=True)
        raise UserError(
            f"pretrained tag {tag!r} is unknown for {name.partition('.')[0]}; "
            f"use one of {', '.join(k.partition('.')[2] for k in known) or '(none)'}."
        )
    with torch.device("meta"):
        try:
            skeleton = timm.create_model(name, pretrained=False)
        except Exception as error:
            raise UserError(f"model {name!r} can't be built: {error}.") from error
    try:
        check_supported(skeleton)
    except UserError as error:
        near = did_you_mean(f"vit_{name}", timm.list_models(["vit_*", "deit*"]))
        raise UserError(f"model {name!r}: {error}{near}") from None


def _create(spec: str, name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    built = f"model {spec!r}" + (f" with {given}" if given else "")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise UserError(f"{built} can't be built: {first_line(error)}.") from error
    except RuntimeError as error:
        if "No pretrained weights" in str(error):
            raise UserError(
                f"timm has no pretrained weights for {spec!r}; add "
                "`pretrained=False` or `checkpoint`."
            ) from error
        raise UserError(f"{built} could not be loaded: {first_line(error)}.") from error
    except (FileNotFoundError, AssertionError, KeyError, ValueError) as error:
        if type(error).__module__.startswith("huggingface_hub"):  # some are FileNotFoundErrors
            raise _not_fetched(spec, error) from error
        raise UserError(f"{built} could not be loaded: {first_line(error)}.") from error
    except Exception as error:
        if name.startswith("local-dir:"):
            raise UserError(f"{built} could not be loaded: {first_line(error)}.") from error
        raise _not_fetched(spec, error) from error
    return model


def _not_fetched(spec: str, error: Exception) -> TpcliError:
    return TpcliError(
        f"the weights of {spec!r} could not be fetched ({first_line(error)}); check the "
        "connection, or use `checkpoint`, a model folder or `pretrained=False`."
    )
