"""The program as tests run it: in this process (the fixture `run`), or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tpcli


class Outcome(NamedTuple):
    """What a run leaves behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Outcome]


def start(*arguments: object, processes: int = 1, **popen: Any) -> subprocess.Popen[str]:
    """Start `tpcli` in a process of its own, or in several under torchrun.

    It takes seconds to import torch and timm; use the fixture `run` unless the process itself is
    what is tested (signals, kills, locks, what is imported).
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--master_port", "0", "--standalone"]
    here = str(Path(tpcli.__file__).parents[1])
    return subprocess.Popen(
        [*launcher, "-m", "tpcli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here, **popen.pop("env", {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **popen,
    )
