"""The program in forks of a process that has torch in memory and has done nothing with it.

A process whose autograd has run can't be forked to train, so the tests' own can't be the parent.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

from .cli import Outcome

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.helpers.forks", "timm", "tpcli.finetune", "tpcli.pareto", "tests.helpers.models"]
)
NUMBERS = count()


@dataclass
class Fork:
    """A run of the program that was started."""

    process: BaseProcess
    streams: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self) -> Outcome:
        """What it leaves behind; the code of one that a signal ended is the negative signal."""
        self.process.join()
        out, err = (Path(f"{self.streams}.{name}") for name in ("out", "err"))
        assert self.process.exitcode is not None
        outcome = Outcome(self.process.exitcode, out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        return outcome


def start(
    folder: Path,
    arguments: Sequence[object],
    prepare: Callable[[], object] | None = None,
    **environment: object,
) -> Fork:
    """Start the program in `folder`; `prepare`, which is pickled, runs first in its process."""
    streams = folder.parent / f"streams of {folder.name} {next(NUMBERS)}"
    words = [str(argument) for argument in arguments]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    process = FORKS.Process(target=_program, args=(folder, words, prepare, streams, variables))
    process.start()
    return Fork(process, streams)


def run(folder: Path, *arguments: object, prepare: Callable[[], object] | None = None) -> Outcome:
    """Run the program in `folder`, in a fork."""
    return start(folder, arguments, prepare).wait()


def _program(
    folder: Path,
    words: list[str],
    prepare: Callable[[], object] | None,
    streams: Path,
    variables: dict[str, str],
) -> None:
    import torch

    from tpcli.cli.main import main

    code = 99
    try:
        with open(f"{streams}.out", "w") as out, open(f"{streams}.err", "w") as err:
            os.environ.update(variables)
            os.chdir(folder)
            torch.set_num_threads(1)
            sys.argv = ["tpcli", *words]
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    if prepare is not None:
                        prepare()
                    main()
                except SystemExit as stopped:
                    code = stopped.code if isinstance(stopped.code, int) else 98
                except BaseException as error:
                    err.write(repr(error))
    finally:
        os._exit(code)
