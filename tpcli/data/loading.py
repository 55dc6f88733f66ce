"""Batches of images, decoded by worker processes as far as shared memory allows."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tpcli.errors import TpcliError, first_line

from .images import ImageData

PREFETCH = 2
"""Batches that each worker prefetches."""

PATIENCE = 600
"""Seconds to wait for a batch from a worker."""

SHARED_MEMORY = Path("/dev/shm")

log = logging.getLogger(__name__)


def batches(
    data: ImageData,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    start_worker: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in order: uint8 (B, C, H, W) and int64 (B,), on the CPU.

    start_worker: called in each worker process before its first image.

    Raises:
        TpcliError: a worker process dies, or sends nothing for ten minutes.
    """
    if isinstance(data.images, IterableDataset):
        workers = 0
    size = min(batch_size, data.count or batch_size)
    workers = affordable_workers(workers, size * math.prod(data.config["input_size"]))
    loader: DataLoader[Any] = DataLoader(
        data.images,
        batch_size=batch_size,
        pin_memory=pin_memory,
        collate_fn=_collate,
        **worker_arguments(workers, start_worker),
    )
    return safely(loader)


def worker_arguments(workers: int, start_worker: Callable[[int], None] | None) -> dict[str, Any]:
    """DataLoader arguments for a number of workers."""
    if workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "prefetch_factor": PREFETCH,
        "timeout": PATIENCE,
        "worker_init_fn": start_worker,
    }


def affordable_workers(workers: int, batch_bytes: int) -> int:
    """The number of workers that shared memory has room for, at most `workers`.

    Where it is full a batch is lost and its receiver waits for ever. Docker gives 64 MB.
    """
    free = free_shared_memory()
    if workers == 0 or free is None:
        return workers
    room = free / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / max(batch_bytes, 1)
    affordable = max(0, min(workers, math.floor((room - 1) / PREFETCH)))  # 1: being received
    if affordable < workers:
        log.warning(
            "%s has %.0f MB free, which is enough for %d instead of %d processes that decode "
            "images; give it more (docker run --shm-size), or use smaller batches",
            SHARED_MEMORY,
            free / 1e6,
            affordable,
            workers,
        )
    return affordable


def free_shared_memory() -> int | None:
    """Free bytes of shared memory, or None if the system has none."""
    try:
        place = os.statvfs(SHARED_MEMORY)
    except (AttributeError, OSError):
        return None
    return place.f_bavail * place.f_frsize


def safely(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader, moved out of shared memory; its errors become sentences.

    Raises:
        TpcliError: a worker process dies, or sends nothing for ten minutes.
    """
    try:
        for batch in loader:
            yield tuple(part.clone() if part.is_shared() else part for part in batch)
    except TpcliError as error:  # of a worker process, with its traceback as the message
        sentences = re.findall(r"^[\w.]+: (.+)$", str(error), re.MULTILINE)
        if not str(error).startswith("Caught") or not sentences:
            raise
        raise type(error)(sentences[-1]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise TpcliError(
            "a process that decodes images stopped or sends nothing "
            f"({first_line(error)}); use fewer workers or smaller batches."
        ) from error


def _collate(samples: list[tuple[np.ndarray[Any, Any], int]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(targets)
