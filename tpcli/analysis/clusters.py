"""Which patches of an image a pooled model puts together, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from torch import Tensor, nn

from tpcli.data import Head
from tpcli.data.images import mode_for, normalize
from tpcli.data.pixels import decode, found_scale
from tpcli.errors import UserError, first_line
from tpcli.evaluation.run import floating_dtype
from tpcli.surgery import pooling_spec, trace, unpooled
from tpcli.surgery.geometry import patch_grid
from tpcli.system.devices import borrowed

BEST = 3
"""Classes that are named for an image."""
SHOWN_BLOCKS = 4


@dataclass(frozen=True)
class BlockClusters:
    """The clusters of one image after one block.

    source: (rows, columns) the token that stands for each patch. dropped: (rows, columns) bool,
    patches of which nothing is left.
    """

    index: int
    tokens: int
    source: npt.NDArray[np.int64]
    dropped: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Guess:
    """A class and its probability in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Seen:
    """One image and what a pooled model makes of it.

    picture: (H, W, 3) uint8, as the model gets it. base_top, pooled_top: the most likely classes
    without and with pooling; empty where the model has no head.
    """

    name: str
    picture: npt.NDArray[np.uint8]
    method: str
    schedule: str
    blocks: tuple[BlockClusters, ...]
    base_top: tuple[Guess, ...]
    pooled_top: tuple[Guess, ...]


def read_images(paths: Sequence[Path], config: dict[str, Any]) -> Tensor:
    """Images prepared as the model's data config says, not normalized: (B, C, H, W) uint8.

    Raises:
        UserError: one can't be read.
    """
    mode = mode_for(config["input_size"][0])
    keys = ("input_size", "interpolation", "crop_pct", "crop_mode")
    prepared = {key: config[key] for key in keys if key in config}
    transform: Any = create_transform(**prepared, is_training=False, use_prefetcher=True)
    opens = [(path.name, partial(path.open, "rb")) for path in paths]
    scale = found_scale(str(paths[0].parent), opens)
    images = []
    for path in paths:
        try:
            image = decode(path.open("rb"), mode, scale)
        except Exception as error:  # Pillow's decoders raise almost anything
            raise UserError(
                f"image {str(path)!r} can't be read ({first_line(error)}); give a picture such as "
                "a .jpg or .png."
            ) from None
        images.append(torch.as_tensor(transform(image)))
    return torch.stack(images)


def pooling_blocks(model: nn.Module) -> list[int]:
    """The blocks of a pooled model after which there are fewer tokens than before."""
    spec = pooling_spec(model)
    plan = None if spec is None else spec.schedule
    if plan is None:
        return []
    return [i for i, left in enumerate(plan.tokens) if left < plan.tokens_in(i)]


def choose_blocks(model: nn.Module, asked: Sequence[int] | None = None) -> list[int]:
    """The blocks to show: those asked for, else up to four spread over those that pool.

    Raises:
        UserError: a block is not there or does not pool, or none does.
    """
    pools = pooling_blocks(model)
    if not pools:
        raise UserError("the model pools in no block, so there are no clusters; give a schedule.")
    if asked is None:
        spread = np.linspace(0, len(pools) - 1, min(SHOWN_BLOCKS, len(pools)))
        return [pools[round(i)] for i in spread]
    depth = len(model.blocks)  # type: ignore[arg-type]
    for block in asked:
        if block >= depth:
            raise UserError(f"block {block} is not there; the model has blocks 0 to {depth - 1}.")
        if block not in pools:
            raise UserError(
                f"block {block} does not pool under this schedule; use one of "
                f"{', '.join(map(str, pools))}."
            )
    return sorted(set(asked))


@torch.inference_mode()
def look(
    model: nn.Module,
    images: Tensor,
    config: Mapping[str, Any],
    names: Sequence[str],
    blocks: Sequence[int] | None = None,
    *,
    classes: bool = True,
) -> list[Seen]:
    """Run a pooled model on a few images, in eval mode; it is left as it was.

    images: (B, C, H, W) uint8. config: the model's data config. names: of the images. blocks: which
    to show, see `choose_blocks`. classes: whether to ask the head too.

    Raises:
        UserError: as `choose_blocks`.
    """
    shown, pools = choose_blocks(model, blocks), pooling_blocks(model)
    spec = pooling_spec(model)
    assert spec is not None
    device = next(model.parameters()).device
    batch = normalize(images, config).to(device, floating_dtype(model))
    pooled_top: list[tuple[Guess, ...]] = [()] * len(images)
    base_top = pooled_top
    with borrowed(model, device):
        with trace(model) as record:
            logits = model(batch)
        if classes:
            pooled_top = guesses(model, logits)
            with unpooled(model):
                base_top = guesses(model, model(batch))
    grid = patch_grid(model)
    sources, dropped = record.sources, record.dropped
    pictures = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
    seen = []
    for i, name in enumerate(names):
        clusters = [
            BlockClusters(
                block,
                spec.schedule.tokens[block],
                sources[pools.index(block)][i].cpu().numpy().reshape(grid),
                dropped[pools.index(block)][i].cpu().numpy().reshape(grid),
            )
            for block in shown
        ]
        method, plan = spec.options.method, spec.schedule.name
        seen.append(
            Seen(name, pictures[i], method, plan, tuple(clusters), base_top[i], pooled_top[i])
        )
    return seen


def guesses(model: nn.Module, logits: Tensor) -> list[tuple[Guess, ...]]:
    """The most likely classes of each image: (B, classes) -> B tuples; empty without a head."""
    if not model.num_classes or logits.ndim != 2:
        return [()] * len(logits)
    found = logits.float().softmax(1).topk(min(BEST, logits.shape[1]), dim=1)
    named = _class_names(model)
    return [
        tuple(Guess(named(int(c)), float(p)) for p, c in zip(*row, strict=True))
        for row in zip(found.values, found.indices, strict=True)
    ]


def _class_names(model: nn.Module) -> Any:
    """From an index of the head to a name."""
    labels = Head.of(model).names
    if labels:
        return lambda index: labels[index]
    subset = infer_imagenet_subset(model)
    if subset is None:
        return lambda index: f"class {index}"
    info = ImageNetInfo(subset)
    return lambda index: str(info.index_to_description(index)).partition(",")[0]
