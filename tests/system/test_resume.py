"""Measured values are remembered for the same question only, whatever happens to their file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tpcli.errors import UserError
from tpcli.system.files import check_output
from tpcli.system.resume import Progress, key, resumable

VALUES = {"a": 1.5, "b": [1, 2], "c": {"each": "AAA="}}


def boom() -> float:
    raise AssertionError("measured again")


def written(path: Path) -> str:
    progress = Progress(path)
    for name, value in VALUES.items():
        assert progress(name, lambda value=value: value) == value  # type: ignore[misc]
    return path.read_text()


def test_values_are_measured_once(tmp_path: Path) -> None:
    written(tmp_path / "p")
    again = Progress(tmp_path / "p")
    assert again.remembered == 3
    assert {name: again(name, boom) for name in VALUES} == VALUES
    assert Progress()("a", lambda: 2) == 2


def test_a_key_holds_all_that_determines_its_value() -> None:
    first = key("scores", tokens=(3, 2), of={"a": 1, "b": 2})
    assert first == key("scores", of={"b": 2, "a": 1}, tokens=[3, 2])
    others = [key("scores", tokens=(3, 1), of={"a": 1, "b": 2}), key("damage", tokens=(3, 2))]
    assert len({first, *others}) == 3


DAMAGE: dict[str, Callable[[str], str]] = {
    "last line cut off": lambda text: text[:-4],
    "no line end": lambda text: text[:-1],
    "a digit": lambda text: text.replace("1.5", "2.5"),
    "not a number": lambda text: text.replace("1.5", "NaN"),
    "no value": lambda text: text.replace("1.5", "null"),
    "a line of nothing": lambda text: text.replace('\n["b"', '\nnull\n["b"'),
    "a line twice": lambda text: text + text.splitlines()[1] + "\n",
    "bytes": lambda text: text.replace('["a"', "[\x00\x01"),
    "nesting": lambda text: text + "[" * 100_000,
    "cut in the head": lambda text: text[:9],
    "empty": lambda text: "",
    "an earlier format": lambda text: '{\n  "format": "tpcli-search/2",\n  "measured": []\n}\n',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_measured_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p"
    path.write_text(DAMAGE[damage](written(path)))
    progress = Progress(path, say=pytest.fail)
    assert {name: progress(name, partial(VALUES.get, name)) for name in VALUES} == VALUES
    again = Progress(path, say=pytest.fail)
    assert again.remembered == 3
    assert again.values == VALUES


@pytest.mark.parametrize("there", ["text", "json", "link", "hard link", "folder", "pipe"])
def test_what_tpcli_did_not_write_is_left_alone(tmp_path: Path, there: str) -> None:
    path, other = tmp_path / "p", tmp_path / "other"
    other.write_text("mine" if there != "hard link" else written(tmp_path / "q"))
    before = other.read_bytes()
    {
        "text": lambda: path.write_text("mine"),
        "json": lambda: path.write_text('{"format": "other"}'),
        "link": lambda: path.symlink_to(other),
        "hard link": lambda: path.hardlink_to(other),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }[there]()
    kind, said = path.lstat().st_mode, []
    progress = Progress(path, tmp_path / "out", said.append)
    assert progress("a", lambda: 1) == 1
    with progress.finishing():
        pass
    assert path.lstat().st_mode == kind
    assert other.read_bytes() == before
    if there in ("text", "json"):
        assert "mine" in path.read_text() or "other" in path.read_text()
    assert len(said) == 1
    assert str(tmp_path / "out") in said[0]


def test_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    progress = Progress(tmp_path / ".o.p", tmp_path / "o", said.append)
    progress("a", lambda: 1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:5]))
    assert [progress(name, lambda: 2) for name in "bcd"] == [2, 2, 2]
    monkeypatch.undo()
    assert len(said) == 1
    assert f"{tmp_path / 'o'} " in said[0]
    assert ".o.p" not in said[0]
    assert Progress(tmp_path / ".o.p").values == {"a": 1}
    with progress.finishing():
        pass
    assert list(tmp_path.iterdir()) == []


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_process_writes_an_output(tmp_path: Path) -> None:
    out = tmp_path / "new" / "o"
    check = partial(check_output, out, False)
    with resumable(out, "p", check) as progress:
        progress("a", lambda: 1)
        with pytest.raises(UserError, match=str(os.getpid())), resumable(out, "p", check):
            pass
    with resumable(out, "p", check) as progress:
        assert progress("a", boom) == 1
        with progress.finishing():
            out.write_text("whole")
    assert names(out.parent) == ["o"]


def test_progress_of_a_finished_run_is_cleared_away_and_no_other(tmp_path: Path) -> None:
    out = tmp_path / "o"
    check = partial(check_output, out, False)
    with resumable(out, "p", partial(check_output, out, True)) as progress:
        progress("a", lambda: 1)
    out.write_text("an earlier one")
    with pytest.raises(UserError), resumable(out, "p", check):
        pass
    assert names(tmp_path) == [".o.p", "o"]  # a run with force was stopped and may be taken up

    class Killed(BaseException):
        pass

    with (
        pytest.raises(Killed),
        resumable(out, "p", partial(check_output, out, True)) as progress,
        progress.finishing(),
    ):
        raise Killed
    with pytest.raises(UserError), resumable(out, "p", check):
        pass
    assert names(tmp_path) == ["o"]


def test_a_run_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "o"
    with pytest.raises(UserError), resumable(out, "p", partial(check_output, out)):
        raise UserError("no such model")
    assert names(tmp_path) == []


def test_names_of_any_length_work(tmp_path: Path) -> None:
    out = tmp_path / ("ä" * 125)
    with resumable(out, "p", partial(check_output, out)) as progress:
        progress("a", lambda: 1)
    assert json.loads(next(tmp_path.iterdir()).read_text().splitlines()[1])[:2] == ["a", 1]
