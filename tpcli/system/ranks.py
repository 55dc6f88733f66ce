"""Rank and world size, from torchrun, accelerate, mpirun or Slurm; sharding and gathering.

Everything that runs in several processes asks here, accelerate included: `join` tells it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from tpcli.errors import TpcliError, UserError, first_line

ValueT = TypeVar("ValueT")

START_SECONDS = 600.0
"""How long the first meeting of all processes is waited for."""
PATIENCE = timedelta(minutes=30)
"""How long one process is waited for while others have done their share."""
NOTICE_SECONDS = 15.0
"""After which a wait is told about."""

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun
)
"""Rank, world size and local rank by launcher. mpirun goes before Slurm: it starts one daemon a
node by srun, whose variables its processes inherit."""

SPECIAL_STEP = 4294967290
"""Numbers of Slurm's steps from here on are an interactive shell, a batch script or the like, in
which a command was started once, whatever SLURM_NTASKS of the job says."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Team:
    """The processes that were started for one command, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0


def team() -> Team:
    """Rank and world size of this process; alone where no launcher started several.

    Raises:
        UserError: a launcher's variables contradict each other; names them.
    """
    found = os.environ
    for names in LAUNCHERS:
        if not all(name in found for name in names[:2]) or _is_special_step(names[0]):
            continue
        rank_name, size_name, local_name = names
        try:
            rank, size = int(found[rank_name]), int(found[size_name])
            local = int(found.get(local_name, rank))
        except ValueError:
            rank, size, local = -1, 0, 0
        if not 0 <= rank < size:
            raise UserError(
                f"{rank_name}={found[rank_name]} and {size_name}={found[size_name]} in the "
                "environment do not go together; unset both, or start the command by torchrun, "
                "srun or mpirun."
            )
        if size > 1:
            return Team(rank, size, local)
    return Team()


def _is_special_step(name: str) -> bool:
    if not name.startswith("SLURM"):
        return False
    step = os.environ.get("SLURM_STEP_ID", "")
    return not step.isdecimal() or int(step) >= SPECIAL_STEP


def share(count: int) -> range | None:
    """This process's shard of `count` images: contiguous, in the order of ranks.

    None where nothing is sharded: one process, or fewer images than processes.
    """
    own = team()
    if own.size == 1 or count < own.size:
        return None
    return range(own.rank * count // own.size, (own.rank + 1) * count // own.size)


def join(device_type: str | None = None) -> None:
    """Make this process one of its group, once; a no-op where it is alone or has joined.

    Args:
        device_type: "cpu" to communicate by gloo although there is an accelerator.

    Raises:
        TpcliError: the other processes did not come in ten minutes.
    """
    from accelerate import PartialState

    own = team()
    if own.size == 1 or PartialState._shared_state:
        return
    import torch

    ranks = {"RANK": own.rank, "WORLD_SIZE": own.size, "LOCAL_RANK": own.local_rank}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    for name, value in _rendezvous(os.environ).items():
        os.environ.setdefault(name, value)
    on_cpu = device_type == "cpu" or not torch.accelerator.is_available()
    waiting_for = f"the other {own.size - 1} processes of this command to start"
    state = _interruptible(
        lambda: PartialState(cpu=on_cpu, timeout=PATIENCE), waiting_for, START_SECONDS
    )
    if state.device.type != "cpu":  # it was set in the thread that waited
        torch.accelerator.set_device_index(state.device)


def _rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the first process listens, and processes a machine, in torchrun's variables."""
    job, step = (environment.get(f"SLURM_{name}_ID", "") for name in ("JOB", "STEP"))
    number = sum(int(text) * k for text, k in ((job, 31), (step, 1)) if text.isdecimal())
    found = {
        "MASTER_ADDR": _first_host(environment),
        "MASTER_PORT": str(15000 + number % 15000),  # two jobs on one machine have two
    }
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"):
        count = re.match(r"\d+", environment.get(name, ""))
        if count:
            return {**found, "LOCAL_WORLD_SIZE": count[0]}
    return found


def _first_host(environment: Mapping[str, str]) -> str:
    """The host of rank 0: the first of a list like `gpu[03-05,09],login1`; this one if unknown."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if not nodes or environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    return re.sub(r"^([^,\[]*)\[([^,\-\]]+)[^\]]*\]", r"\1\2", nodes).split(",")[0]


def gathered(value: ValueT) -> list[ValueT]:
    """`value` of each process, in the order of ranks, in every process.

    Raises:
        TpcliError: another process ended, or sent nothing for half an hour.
    """
    own = team()
    if own.size == 1:
        return [value]
    join()
    from accelerate.utils import gather_object

    waiting_for = f"what the other {own.size - 1} processes of this command found"
    found: list[ValueT] = _interruptible(lambda: gather_object([value]), waiting_for)
    return found


def _interruptible(
    call: Callable[[], ValueT], waiting_for: str, seconds: float = threading.TIMEOUT_MAX
) -> ValueT:
    """The result of a call that waits for other processes, in a thread of its own.

    Python handles signals in the main thread alone, and there only between operations of its own:
    without the thread neither Ctrl-C nor SIGTERM would end the wait.

    Args:
        seconds: after which it is given up; the call may have a time-out of its own.

    Raises:
        TpcliError: it took too long, or the call failed, as another process has ended.
    """
    import torch

    has_accelerator = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_device_index() if has_accelerator else None
    results: list[ValueT] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            if accelerator is not None:  # each thread has a current device of its own
                torch.accelerator.set_device_index(accelerator)
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="waiting for other ranks")
    began = time.monotonic()
    thread.start()
    thread.join(min(NOTICE_SECONDS, seconds))
    if thread.is_alive():
        log.warning("waiting for %s", waiting_for)
        thread.join(seconds - NOTICE_SECONDS)
    if results:
        return results[0]
    reason = first_line(errors[0]) if errors else "no answer"
    raise TpcliError(
        f"waited {time.monotonic() - began:.0f} s in vain for {waiting_for} ({reason}); look at "
        "what they say, or unset RANK and WORLD_SIZE where there are no others."
    ) from (errors[0] if errors else None)
