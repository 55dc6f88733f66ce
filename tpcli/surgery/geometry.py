"""What a timm model is like: its image size, its patch grid, its blocks, and how it is pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from tpcli.config.options import PoolingOptions, options_from_dict
from tpcli.config.schedule import Schedule, share_of
from tpcli.errors import UserError

POOLING_NAME = "token_pooling"
"""The attribute of a block that holds its pooling layer."""
CLASSES = (VisionTransformer, Eva, Beit, VisionTransformerRelPos, NaFlexVit)
"""What can be pooled."""


def vits_in(model: nn.Module) -> dict[str, nn.Module]:
    """The Vision Transformers of timm that `model` is or holds, by their place in it."""
    if isinstance(model, CLASSES):
        return {"": model}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, CLASSES) and not any(f"{name}.".startswith(f"{n}.") for n in found):
            found[name] = module
    return found


def vit_of(model: nn.Module) -> nn.Module:
    """The Vision Transformer that `model` is or holds, where it is one; else `model` itself."""
    inside = list(vits_in(model).values())
    return inside[0] if len(inside) == 1 else model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of the Vision Transformer that `model` is or holds, out of torch's checkpoint
    wrappers."""
    blocks = list(vit_of(model).blocks)  # type: ignore[arg-type]
    return [getattr(block, "_checkpoint_wrapped_module", block) for block in blocks]


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) that the Vision Transformer in `model` was built for."""
    model = vit_of(model)
    if isinstance(model, NaFlexVit):  # takes any size; this is the one that it was trained for
        config: Any = model.pretrained_cfg
        _, height, width = config["input_size"]
        return int(model.embeds.in_chans), int(height), int(width)
    stem: Any = model.patch_embed
    height, width = stem.img_size
    first = next(m for m in stem.modules() if isinstance(m, nn.Conv2d))  # hybrids have many
    return int(first.in_channels), int(height), int(width)


def patch_grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches at the model's own image size."""
    model = vit_of(model)
    if isinstance(model, NaFlexVit):
        _, height, width = input_size(model)
        patch_height, patch_width = model.embeds.patch_size
        return height // patch_height, width // patch_width
    stem: Any = model.patch_embed
    is_padded = getattr(stem, "dynamic_img_pad", False)  # to whole patches
    rows, columns = stem.dynamic_feat_size(stem.img_size) if is_padded else stem.grid_size
    return int(rows), int(columns)


def patch_tokens(model: nn.Module) -> int:
    """N_0: the patch tokens that enter block 0 at the model's own image size."""
    rows, columns = patch_grid(model)
    return rows * columns


def tokens_left(tokens: int, kept: int, of: int) -> int:
    """What a layer that keeps `kept` of `of` keeps of `tokens`: the same share at another size.

    Raises:
        UserError: torch.export leaves open how many there are.
    """
    if isinstance(tokens, torch.Tensor):  # a tracer of torch.jit makes one of every size
        tokens = int(tokens)
    if not isinstance(tokens, int) and torch.compiler.is_exporting():
        raise UserError(
            "a pooled model can't be exported for any image size, since how many tokens are left "
            "would be unknown in every operator behind; leave height and width out of "
            "dynamic_shapes, and export a program for each size (set_input_size)."
        )
    return kept if tokens == of else share_of(tokens, kept, of)


FORMAT = "tpcli-pooling/1"


@dataclass(frozen=True)
class PoolingSpec:
    """How a model is pooled; remembered on the model and in its `config.json`."""

    schedule: Schedule
    options: PoolingOptions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the `token_pooling` key of `config.json`."""
        values = {
            "format": FORMAT,
            "schedule": self.schedule.spec,
            "patch_tokens": self.schedule.patch_tokens,
            "tokens": list(self.schedule.tokens),
            "method": self.options.to_dict(),
        }
        if self.schedule.chosen_on:
            values["chosen_on"] = self.schedule.chosen_on
        return values

    @classmethod
    def from_dict(cls, values: Any) -> PoolingSpec:
        """What `to_dict` wrote.

        Raises:
            UserError: the values are not what `to_dict` writes.
        """
        try:
            _check_written(values)
            chosen = values.get("chosen_on")
            schedule = Schedule(
                tuple(values["tokens"]),
                values["patch_tokens"],
                values["schedule"],
                made_by={"chosen_on": chosen} if chosen else None,
            )
            return cls(schedule, options_from_dict(values["method"]))
        except (UserError, ValueError) as error:
            raise UserError(
                f"config.json has a token_pooling that can't be read: {str(error).rstrip('.')}."
            ) from None


def _check_written(values: Any) -> None:
    """Raise ValueError unless the values are of the types that `to_dict` writes."""
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is no object")
    if values.get("format") != FORMAT:
        raise ValueError(f"its format is {values.get('format')!r}, and this version reads {FORMAT}")
    for key, kind in {"schedule": str, "patch_tokens": int, "tokens": list, "method": dict}.items():
        if type(values.get(key)) is not kind:
            raise ValueError(f"{key} {values.get(key)!r} is no {kind.__name__}")
    for count in (values["patch_tokens"], *values["tokens"]):
        if type(count) is not int:  # a bool is an int to isinstance
            raise ValueError(f"{count!r} is no number of tokens")


def pooling_spec(model: nn.Module) -> PoolingSpec | None:
    """How `model` is pooled, or None."""
    return vars(vit_of(model)).get("token_pooling_spec")
