"""Devices: by name, synchronization, autocast, free memory."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import nn

from tpcli.errors import UserError, first_line, quoted

from .ranks import team

ModelT = TypeVar("ModelT", bound=nn.Module)


def pick_device(device: str | torch.device) -> torch.device:
    """A device by name; "auto" is the accelerator of this machine, else the CPU.

    Of several processes that were started for one command each takes its own.

    Raises:
        UserError: the device is unknown or not there.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return _own_of(accelerator or torch.device("cpu"))
    try:
        chosen = torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
        if not torch.get_device_module(chosen.type).is_available():
            raise RuntimeError("this machine, or this torch, has none")
        chosen = _own_of(chosen)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
        reason = quoted(first_line(error), 120)[1:-1]
        raise UserError(
            f"device {str(device)!r} can't be used ({reason}); use auto or cpu."
        ) from None
    return chosen


def _own_of(device: torch.device) -> torch.device:
    """The device of this rank, where there are several."""
    own = team()
    if device.type == "cpu" or device.index is not None or own.size == 1:
        return device
    return torch.device(device.type, own.local_rank % max(torch.accelerator.device_count(), 1))


def device_name(device: str | torch.device) -> str:
    """Model name of the device; for a CPU also its number of threads."""
    chosen = pick_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
    return f"{chosen.type} {name}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next to it means something."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """bfloat16 autocast, float16 on CUDA devices without it; nothing if not enabled."""
    if not enabled:
        return nullcontext()
    return torch.autocast(device.type, dtype=sixteen_bit_type(device))


def sixteen_bit_type(device: torch.device) -> torch.dtype:
    """bfloat16, or float16 on CUDA devices that only imitate it, slowly."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


@contextmanager
def borrowed(model: ModelT, device: torch.device) -> Iterator[ModelT]:
    """The model on `device`, in eval mode; afterwards where and in the modes that it was.

    A model whose weights hooks bring in block by block (accelerate's offloading) stays where it is.
    """
    modes = {module: module.training for module in model.modules()}
    tensors = (*model.parameters(), *model.buffers())
    is_offloaded = any(tensor.is_meta for tensor in tensors)
    home = tensors[0].device if tensors else device
    try:
        yield (model if is_offloaded else model.to(device)).eval()
    finally:
        for module in model.modules():
            module.training = modes.get(module, model.training)
        if not is_offloaded:
            model.to(home)


@contextmanager
def explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn an allocator's failure into a sentence with the batch size to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = f"try `batch_size={batch_size // 2}`" if batch_size > 1 else "use a smaller model"
        raise UserError(f"out of memory at batch size {batch_size}; {advice}.") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator failed, on any device."""
    signs = ("allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        sign in str(error) for sign in signs
    )


CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of containers and of jobs."""


def free_memory(groups: str | None = None, root: Path = CGROUPS) -> int:
    """Bytes of memory that this process can still take, within the limits of its container.

    Args:
        groups: what `/proc/self/cgroup` says, which is read where left out.
        root: where limits are mounted.
    """
    if groups is None:
        groups = ""
        with suppress(OSError):
            groups = Path("/proc/self/cgroup").read_text()
    rooms: list[int] = [psutil.virtual_memory().available]
    for line in groups.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            rooms += _rooms(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            rooms += _rooms(root / "memory", path, *names)
    return max(0, min(rooms))


def _rooms(mount: Path, path: str, limit: str, usage: str, cached: str) -> Iterator[int]:
    """What is left under the limit of a group and of those above it, pages of files not counted.

    A container sees its own group as the root, whatever the path says.
    """
    group = mount / path.strip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):
            most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            yield most - used + int(dict(line.split() for line in lines).get(cached, 0))
        if folder == mount:
            return
