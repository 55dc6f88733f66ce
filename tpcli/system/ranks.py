"""Several processes that do one command, as torchrun, accelerate or srun start them.

Each knows from its environment which it is. They meet through accelerate.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "MASTER_ADDR": "SLURM_LAUNCH_NODE_IPADDR",
}
"""What srun calls that which torchrun sets."""

PORT = 29500
"""Where the first process listens, where nobody says."""


@dataclass(frozen=True)
class Team:
    """This process among those that were started together.

    rank: its number. size: how many there are. place: its number on its own machine.
    """

    rank: int = 0
    size: int = 1
    place: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the one that reports."""
        return self.rank == 0


def team() -> Team:
    """Which process this is; alone where nobody started several."""
    found = dict(os.environ)
    if "RANK" not in found and "SLURM_STEP_ID" in found:
        found |= {name: found[own] for name, own in SLURM.items() if own in found}
    try:
        rank, size = int(found["RANK"]), int(found["WORLD_SIZE"])
        return Team(rank, size, int(found.get("LOCAL_RANK", rank)))
    except (KeyError, ValueError):
        return Team()


def share(count: int) -> range | None:
    """This process's part of so many images; the parts follow one another as the ranks do.

    None where nothing is dealt out: it is alone, or there are fewer images than processes.
    """
    own = team()
    if own.size == 1 or count < own.size:
        return None
    return range(own.rank * count // own.size, (own.rank + 1) * count // own.size)


def gathered(value: Any) -> list[Any]:
    """What each process has, in the order of their ranks, in every process."""
    own = team()
    if own.size == 1:
        return [value]
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    for name, slurm in SLURM.items():
        if slurm in os.environ:
            os.environ.setdefault(name, os.environ[slurm])
    os.environ.setdefault("MASTER_PORT", str(PORT))
    PartialState(cpu=not torch.cuda.is_available())
    return list(gather_object([value]))
