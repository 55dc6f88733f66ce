"""Measured values of an unfinished run, in a file beside its output, to resume from."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tpcli.errors import TpcliError, UserError

from .files import clear_litter, locked, replacing
from .ranks import gathered

HEAD = '{"format": "tpcli-progress/1"}\n'
OURS = (
    '{"format":"tpcli-progress/',
    '{"format":"tpcli-search/',
    '{"format":"tpcli-optimize-notes/',
)
"""How files of this and of earlier versions begin, without white space."""

FINISHED = "finished"
"""Key of the last line, written before the output is: from then on the values are not needed."""

Say = Callable[[str], None]


def key(kind: str, **determinants: Any) -> str:
    """The key of a value: what it is, and a hash of everything that determines it."""
    text = json.dumps(determinants, sort_keys=True, default=str)
    return f"{kind} {hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Progress:
    """Values by their keys, appended to a file as they are measured.

    A line is a JSON list of key, value and checksum. Lines that are damaged are dropped, and their
    values measured again. A file or link that tpcli did not write is left alone, and a full disk
    stops nothing: in both cases the run can't be resumed, which is said once.

    Args:
        path: the file; None to remember nothing.
        output: what the values are measured for, as messages name it.
        say: called with messages.
    """

    def __init__(
        self, path: Path | None = None, output: Path | None = None, say: Say = warnings.warn
    ) -> None:
        self._path = path
        self._output = output or path
        self._say = say
        self._is_written = path is not None
        self.values: dict[str, Any] = {}
        if path is not None:
            self._resume(path)
        self.remembered = len(self.values)

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of `key`, as JSON holds it: the remembered one, or what `measure` returns."""
        if key not in self.values:
            self.values[key] = measure()
            self._append(key, self.values[key])
        return self.values[key]

    def share(self) -> None:
        """Have every rank remember what the first one does."""
        self.values = gathered(self.values)[0]

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Write the output in the body; then the file is removed."""
        self._append(FINISHED, None)
        yield
        if self._path is not None and _own_text(self._path) is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _resume(self, path: Path) -> None:
        text = _own_text(path)
        if text is None:
            self._give_up(f"{path} is no file of tpcli's; move it away")
        elif text:
            found = [entry for line in text.splitlines() if (entry := _parsed(line)) is not None]
            self.values = {key: value for key, value in found if key != FINISHED}
            whole = HEAD + "".join(_line(key, value) for key, value in self.values.items())
            if whole != text:
                try:
                    with replacing(path) as fresh:
                        fresh.write_text(whole, encoding="utf-8")
                except TpcliError as error:
                    self._give_up(str(error.__cause__ or error))

    def _append(self, key: str, value: Any) -> None:
        if self._path is None or not self._is_written:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            file = os.open(self._path, flags, 0o666)
            try:
                before = os.fstat(file).st_size
                line = (("" if before else HEAD) + _line(key, value)).encode()
                if os.write(file, line) < len(line):
                    os.ftruncate(file, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(file)
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _give_up(self, reason: str) -> None:
        self._is_written = False
        self._say(f"the run for {self._output} can't be resumed if it stops: {reason}")


@contextmanager
def resumable(
    out: Path, kind: str, check: Callable[[], None], say: Say = warnings.warn
) -> Iterator[Progress]:
    """Progress towards `out`, in a hidden file beside it, for the one process that writes `out`.

    Args:
        kind: last part of the hidden file's name.
        check: raises UserError where `out` may not be written; called under the lock.

    Raises:
        UserError: another process writes `out`, or what `check` raises.
    """
    path = beside(out, kind)
    with ExitStack() as stack:
        stack.callback(_remove_empty, [p for p in path.parents if not p.exists()])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(locked(beside(out, "lock")))
        except OSError as error:
            check()
            raise UserError(
                f"{out} can't be written ({error.strerror or error}); choose another `out`."
            ) from error
        if holder is not None:
            raise UserError(
                f"{out} is being written by {holder}; wait for it, or choose another `out`."
            )
        try:
            check()
        except UserError:
            _clear_finished(path)
            raise
        clear_litter(path.parent, path.name)
        yield Progress(path, out, say)


def beside(out: Path, kind: str) -> Path:
    """The hidden file of a kind beside an output; a name that would be too long is hashed."""
    out = out.resolve()
    name = out.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return out.with_name(f".{name}.{kind}")


def _own_text(path: Path) -> str | None:
    """The content of a file that tpcli wrote, or of none or an empty one; None for any other."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:
        return None
    start = "".join(text[:200].split())
    return text if any(start.startswith(own) or own.startswith(start) for own in OURS) else None


def _parsed(line: str) -> tuple[str, Any] | None:
    try:
        key, value, checksum = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    is_whole = isinstance(key, str) and line + "\n" == _line(key, value)
    return (key, value) if is_whole and checksum else None


def _line(key: str, value: Any) -> str:
    text = json.dumps([key, value])
    return f"{text[:-1]}, {zlib.crc32(text.encode()) or 1}]\n"


def _clear_finished(path: Path) -> None:
    """Remove the progress of a run that was ended between writing its output and removing this."""
    text = _own_text(path)
    if text and (last := _parsed(text.rstrip("\n").rpartition("\n")[2])) and last[0] == FINISHED:
        with suppress(OSError):
            path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
