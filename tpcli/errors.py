"""The two ways in which a command ends badly; the command line turns them into exit codes."""

from __future__ import annotations

from collections.abc import Iterable


class TpcliError(Exception):
    """A failure that the user can read: one sentence, no traceback. Exit code 1."""

    exit_code = 1


class UserError(TpcliError):
    """The user's mistake: names the wrong value, what is accepted and what to do. Exit code 2."""

    exit_code = 2


LONGEST = 200


def first_line(error: Exception) -> str:
    """What an error of another library says first, to stand inside a sentence of ours.

    Lines are joined while they end in a colon; what is longer than 200 characters is cut.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    text = lines[0]
    for line in lines[1:]:
        if not text.rstrip(".").endswith(":"):
            break
        text = f"{text.rstrip('.')} {line}"
    text = text.rstrip(".:")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def quoted(value: object, most: int = 60) -> str:
    """A wrong value in quotes; of a long one its beginning and its length."""
    text = str(value)
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text)} characters)"


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A trailing ' Did you mean ...?' with the names nearest to `name`, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""
