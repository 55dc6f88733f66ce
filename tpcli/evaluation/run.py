"""Accuracy and speed of a model on a data set."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset

from tpcli.data import UNREADABLE, Head, ImageData, batches, match_classes
from tpcli.errors import TpcliError, UserError
from tpcli.stats import wilson_interval
from tpcli.surgery.geometry import CLASSES as VITS
from tpcli.surgery.geometry import input_size, vit_of
from tpcli.system.devices import autocast, borrowed, explain_out_of_memory, pick_device, synchronize
from tpcli.system.ranks import gathered, share

Batches = Iterable[tuple[Tensor, Tensor]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalResult:
    """What was measured.

    count: images that were read and counted. top1, top5: percent. loss: mean cross entropy.
    top1_ci95: 95% Wilson interval of top1, in percent. images_per_second: time in the model alone.
    unreadable: names (or positions) of images that could not be read. correct: (count,) whether
    each image's best guess was right, in the data's order.
    """

    count: int
    top1: float
    top5: float
    loss: float
    top1_ci95: tuple[float, float]
    images_per_second: float
    unreadable: tuple[str, ...] = ()
    correct: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool), repr=False)

    @classmethod
    def of(
        cls,
        correct: npt.NDArray[np.bool_],
        top5: float,
        loss: float,
        images_per_second: float,
        unreadable: tuple[str, ...],
    ) -> EvalResult:
        """What follows from `correct`, beside the rest."""
        count = len(correct)
        low, high = (100 * end for end in wilson_interval(int(correct.sum()), count))
        top1 = 100 * float(correct.mean())
        return cls(count, top1, top5, loss, (low, high), images_per_second, unreadable, correct)


@dataclass(frozen=True)
class RunOptions:
    """How a model is run over images; handed on as it is from the command to the loop.

    device: "auto" takes an accelerator if there is one. amp: autocast to bfloat16 (float16 where a
    CUDA device has no bfloat16). workers: processes that decode images. strict: stop at the first
    unreadable image instead of leaving it out. sharded: of the processes of one command each runs
    over its own images, and all have the result. start_worker: called in each worker first.
    """

    batch_size: int = 128
    device: str | torch.device = "auto"
    amp: bool = False
    workers: int = 0
    strict: bool = False
    sharded: bool = False
    start_worker: Callable[[int], None] | None = None


def evaluate(
    model: nn.Module,
    data: ImageData,
    run: RunOptions | None = None,
    *,
    decoded: Batches | None = None,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> EvalResult:
    """Measure top-1, top-5 and loss of `model` on all images of `data`; it is left as it was.

    Args:
        run: how the model is run; `options` change it, such as `batch_size=64, device="cpu"`.
        decoded: batches of `data` that are in memory already.
        on_batch: called with the number of images in each batch that is done.

    Raises:
        UserError: out of memory (says the batch size to try), or an unreadable image with `strict`.
    """
    run = replace(run or RunOptions(), **options)
    check_size(model, data)
    mine = shard(data, run, decoded)
    if mine is not None:
        found = evaluate(model, mine, run, on_batch=on_batch, sharded=False)
        return combined(gathered(found))
    head = _head(model)
    if decoded is None and head is not None:
        data = match_classes(data, head)
    by_position = decoded is None and head is None and data.indices is None
    answers = head.size if head else len(data.classes) if by_position else 0
    right1: list[Tensor] = []
    right5: list[Tensor] = []
    losses: list[Tensor] = []

    def take(logits: Tensor, targets: Tensor) -> None:
        if answers and logits.shape[1] != answers:
            raise UserError(
                f"the model answers with {logits.shape[1]} numbers for an image, and its "
                f"{'head' if head else 'data'} has {answers} classes; give the model whose answers "
                "are those of the classes."
            )
        logits = logits.float()
        low, high = (int(end) for end in targets.aminmax())
        if low < 0 or high >= logits.shape[1]:
            raise UserError(
                f"{data.spec} has the label {low if low < 0 else high}, and the model tells "
                f"{logits.shape[1]} classes apart; use data of these classes, or another measure."
            )
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets.unsqueeze(1)
        right1.append(best[:, 0])
        right5.append(best.any(1))
        losses.append(F.cross_entropy(logits, targets, reduction="none"))

    speed, unreadable = stream(model, data, take, run, decoded=decoded, on_batch=on_batch)
    loss = float(torch.cat(losses).cpu().numpy().mean(dtype=np.float64))
    if not math.isfinite(loss):
        raise TpcliError(
            "the model's output is not finite; try without `amp`, or check its weights."
        )
    correct = torch.cat(right1).cpu().numpy()
    top5 = 100 * float(torch.cat(right5).cpu().numpy().mean())
    return EvalResult.of(correct, top5, loss, speed, unreadable)


def stream(
    model: nn.Module,
    data: ImageData,
    take: Callable[[Tensor, Tensor], None],
    run: RunOptions,
    *,
    answer: Callable[[nn.Module, Tensor], Tensor] | None = None,
    decoded: Batches | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[float, tuple[str, ...]]:
    """Hand what `model` says of each batch of readable images to `take`, with their targets.

    Returns images per second, and names of images that could not be read.

    Args:
        answer: what is asked of the model and the normalized images (B, C, H, W); its output where
            left out.
        decoded: as for `evaluate`.
        on_batch: as for `evaluate`.

    Raises:
        UserError: as `evaluate`, or no image can be read.
    """
    device = pick_device(run.device)
    if decoded is None:
        is_cuda = device.type == "cuda"
        decoded = batches(data, run.batch_size, run.workers, is_cuda, run.start_worker)
    dtype = floating_dtype(model)
    reasons: dict[str, str] = {}
    seen = 0
    times: list[tuple[int, float]] = []
    with borrowed(model, device), torch.inference_mode(), explain_out_of_memory(run.batch_size):
        for images, targets in decoded:
            bad = (targets == UNREADABLE).nonzero().flatten().tolist()
            for position in (seen + i for i in bad):
                name = data.names[position] if data.names else f"image {position}"
                reasons[name] = data.why_unreadable(position)
                if run.strict:
                    raise UserError(
                        f"{name} can't be read ({reasons[name]}); fix or remove it, or leave out "
                        "`strict`."
                    )
            seen += len(targets)
            if len(bad) < len(targets):
                if bad:
                    keep = targets != UNREADABLE
                    images, targets = images[keep], targets[keep]
                images = data.normalize(images.to(device, non_blocking=True)).to(dtype)
                targets = targets.to(device, non_blocking=True)
                synchronize(device)
                began = time.perf_counter()
                with autocast(device, run.amp):
                    said = model(images) if answer is None else answer(model, images)
                synchronize(device)
                times.append((len(targets), time.perf_counter() - began))
                take(said, targets)
            if on_batch is not None:
                on_batch(len(targets) + len(bad))
    if not times:
        raise UserError(f"none of the images in {data.spec} can be read.")
    _say_unreadable(data.spec, tuple(reasons.items()))
    return images_per_second(times), tuple(reasons)


def images_per_second(times: Sequence[tuple[int, float]]) -> float:
    """Of batches, by their images and seconds; the first one warms up."""
    counted = times[1:] or times
    return sum(count for count, _ in counted) / sum(seconds for _, seconds in counted)


def _head(model: nn.Module) -> Head | None:
    """The head of a model of timm, or of the one that `model` holds; None where another answers."""
    vit = vit_of(model)
    has_own = vit is not model and not getattr(vit, "num_classes", 0)
    return Head.of(vit) if hasattr(vit, "num_classes") and not has_own else None


@cache
def _say_unreadable(spec: str, reasons: tuple[tuple[str, str], ...]) -> None:
    """Log why images are left out, once for those of one reason, and once for the same images."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        log.warning("%s%s in %s can't be read: %s", names[0], more, spec, reason)


def check_size(model: nn.Module, data: ImageData) -> None:
    """Raise where images are of another size than FLOPs are counted at.

    Raises:
        UserError: says both sizes.
    """
    if not isinstance(vit_of(model), VITS):
        return
    own, given = input_size(model), tuple(data.config["input_size"])
    if own != given:
        raise UserError(
            f"images of {'x'.join(map(str, given))} don't go with a model of "
            f"{'x'.join(map(str, own))}; open the data with the model's own data config."
        )


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The type that the model takes images in: that of its first floating point weights."""
    weights = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(weights, torch.float32)


def shard(data: ImageData, run: RunOptions, decoded: Batches | None = None) -> ImageData | None:
    """This process's images, where `run.sharded`.

    None where every process runs over all: of a stream, of fewer images than processes, and of
    `decoded` ones.
    """
    if not run.sharded or decoded is not None or isinstance(data.images, IterableDataset):
        return None
    mine = share(data.count or 0)
    if mine is None:
        return None
    names = data.names[mine.start : mine.stop] or tuple(f"image {i}" for i in mine)
    return replace(data, images=Subset(data.images, mine), names=names)


def combined(parts: Sequence[EvalResult]) -> EvalResult:
    """The result of all images from those of shards; speeds add up, as shards ran side by side."""
    counts = np.array([part.count for part in parts])
    top5, loss = (
        float(np.dot(values, counts) / counts.sum())
        for values in ([part.top5 for part in parts], [part.loss for part in parts])
    )
    return EvalResult.of(
        np.concatenate([part.correct for part in parts]),
        top5,
        loss,
        sum(part.images_per_second for part in parts),
        tuple(name for part in parts for name in part.unreadable),
    )
