"""Being told to stop: SIGTERM and Ctrl-C end the run after a step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from tpcli.errors import TpcliError


class Interrupted(TpcliError):
    """The run was told to stop and did, with a checkpoint. Exit code 130."""

    exit_code = 130


def outlive_signals(worker: int) -> None:
    """Let a process that decodes images leave the first signal to its parent, which still needs it.

    Schedulers and terminals signal whole process groups; the second signal is the parent's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


class StopRequest:
    """While active, remembers the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
