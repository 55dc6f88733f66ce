"""What a model answers to all images of a data set, kept in a file that is mapped into memory.

Of several processes that were started for one command each may answer for its own images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tpcli.data import ImageData
from tpcli.errors import TpcliError
from tpcli.system.ranks import gathered

from .run import Batches, RunOptions, shard, stream

Floats = npt.NDArray[np.float32]

CHUNK = 2**22
"""Numbers that are in memory at a time."""


@dataclass(frozen=True)
class Answers:
    """Logits or features of the images that can be read, in the data's order.

    rows: (count, D), in a file without a name, which is gone when nobody holds them any more.
    targets: (count,).
    """

    rows: Floats
    targets: npt.NDArray[np.int64]
    images_per_second: float
    unreadable: tuple[str, ...] = ()


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, classes)."""
    logits: Tensor = model(images)
    return logits


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """What the model returns without a head; what goes into its head where it has one.

    (B, 3, H, W) -> (B, D).
    """
    if not getattr(model, "num_classes", 0):
        return logits_of(model, images)
    tokens: Tensor = model.forward_features(images)  # type: ignore[operator]
    features: Tensor = model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
    return features


def collect(
    model: nn.Module,
    data: ImageData,
    answer: Callable[[nn.Module, Tensor], Tensor],
    run: RunOptions,
    folder: Path | None = None,
    *,
    decoded: Batches | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Answers:
    """Run `model` over all images of `data` and keep `answer` of each, 4 bytes a number on disk.

    Where `run.sharded`, each process runs over its own images, and all have all answers.

    Args:
        folder: where the file lies; the system's place for such files if left out.
        decoded: as for `evaluate`.
        on_batch: as for `evaluate`.

    Raises:
        TpcliError: an answer is not finite, or the disk is full.
        UserError: as `evaluate`.
    """
    mine = shard(data, run, decoded)
    targets: list[Tensor] = []
    width = 0
    with _nameless(folder) as file:

        def take(rows: Tensor, labels: Tensor) -> None:
            nonlocal width
            rows = rows.float().cpu()
            if not rows.isfinite().all():
                raise TpcliError(
                    "the model's output is not finite; try without `amp`, or check its weights."
                )
            width = rows.shape[1]
            targets.append(labels.cpu())
            try:
                file.write(rows.contiguous().numpy().data)
            except OSError as error:
                raise TpcliError(f"features can't be kept on disk: {error.strerror}.") from error

        speed, unreadable = stream(
            model, mine or data, take, run, answer=answer, decoded=decoded, on_batch=on_batch
        )
        file.flush()
        labels = torch.cat(targets).numpy()
        rows: Floats = np.memmap(file, np.float32, "c", shape=(len(labels), width))
    answers = Answers(rows, labels, speed, unreadable)
    return combined(answers, folder) if mine else answers


def combined(share: Answers, folder: Path | None = None) -> Answers:
    """The answers of all processes, in each of them; speeds add up."""
    parts = gathered(replace(share, rows=np.array(share.rows[:0])))
    counts = [len(part.targets) for part in parts]
    width = share.rows.shape[1]
    with _nameless(folder) as file:
        file.truncate(4 * width * sum(counts))
        rows: Floats = np.memmap(file, np.float32, "r+", shape=(sum(counts), width))
    starts = np.cumsum([0, *counts[:-1]])
    step = max(1, CHUNK // width)
    for begin in range(0, max(counts), step):
        pieces = gathered(np.array(share.rows[begin : begin + step]))
        for start, piece in zip(starts, pieces, strict=True):
            rows[start + begin : start + begin + len(piece)] = piece
    return Answers(
        rows,
        np.concatenate([part.targets for part in parts]),
        sum(part.images_per_second for part in parts),
        tuple(name for part in parts for name in part.unreadable),
    )


def _nameless(folder: Path | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise TpcliError(f"features can't be kept on disk: {error.strerror}.") from error


def chunks(*several: Floats) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each, a piece at a time, as tensors."""
    step = max(1, CHUNK // several[0].shape[1])
    for start in range(0, len(several[0]), step):
        yield tuple(torch.from_numpy(np.asarray(rows[start : start + step])) for rows in several)
