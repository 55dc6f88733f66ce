"""The program in forks of this process, which has torch in memory: starting one costs nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.program import Outcome
from tpcli.cli.main import main

NUMBERS = count()


@dataclass
class Fork:
    """A run of the program that was started."""

    pid: int
    streams: Path

    def wait(self) -> Outcome:
        """What it leaves behind; the code of one that a signal ended is the negative signal."""
        _, status = os.waitpid(self.pid, 0)
        out, err = (Path(f"{self.streams}.{name}") for name in ("out", "err"))
        outcome = Outcome(os.waitstatus_to_exitcode(status), out.read_text(), err.read_text())
        out.unlink()
        err.unlink()
        return outcome


def start(
    folder: Path, arguments: Sequence[object], prepare: Callable[[], None] | None = None
) -> Fork:
    """Start the program in `folder`; `prepare` runs first in its process."""
    streams = folder.parent / f"streams of {folder.name} {next(NUMBERS)}"
    pid = os.fork()
    if pid:
        return Fork(pid, streams)
    code = 99
    try:
        with open(f"{streams}.out", "w") as out, open(f"{streams}.err", "w") as err:
            os.chdir(folder)
            sys.argv = ["tpcli", *map(str, arguments)]
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


def run(folder: Path, *arguments: object, prepare: Callable[[], None] | None = None) -> Outcome:
    """Run the program in `folder`, in a fork."""
    return start(folder, arguments, prepare).wait()
