"""Outputs are whole or not there."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from tests.helpers.selection import some_of
from tpcli.errors import TpcliError, UserError
from tpcli.system.files import (
    MARK,
    PARTIAL,
    Kind,
    check_output,
    has_format,
    holds_only,
    is_marked,
    locked,
    read_json,
    replacing,
    swap,
    why_not_written,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_is_there_only_after_the_body(tmp_path: Path) -> None:
    target = tmp_path / "plot.png"
    with replacing(target) as fresh:
        assert fresh.name == "plot.png"
        fresh.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(tmp_path) == ["plot.png"]


def write_half(target: Path, error: type[BaseException], as_folder: bool = False) -> None:
    """Begin a replacement and fail."""
    with replacing(target) as fresh:
        if as_folder:
            fresh.mkdir()
        else:
            fresh.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_body_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(tmp_path / "plot.png", error)
    assert names(tmp_path) == []


def test_a_failing_body_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "plot.png"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(target, RuntimeError)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["plot.png"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").write_text("old")
    with replacing(target) as fresh:
        fresh.mkdir()
        (fresh / "config.json").write_text("{}")
        assert names(target) == ["stale"]
    assert names(target) == ["config.json"]
    assert names(tmp_path) == ["model"]


def test_a_failing_body_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "precious").write_text("old")
    with pytest.raises(RuntimeError):
        write_half(target, RuntimeError, as_folder=True)
    assert names(target) == ["precious"]
    assert names(tmp_path) == ["model"]


def test_a_folder_whose_replacement_was_never_written_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "precious").write_text("old")
    with pytest.raises(TpcliError), replacing(target):
        pass
    assert names(tmp_path) == ["model"]
    assert names(target) == ["precious"]


def test_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TpcliError, match=r"c\.txt.*No space left"):
        write_text(tmp_path / "c.txt", "text")
    assert names(tmp_path) == []


def test_existing_output_needs_force(tmp_path: Path) -> None:
    target = tmp_path / "s.json"
    write_json(target, {"a": 1}, force=False)
    with pytest.raises(UserError, match=r"s\.json"):
        write_json(target, {"a": 2}, force=False)
    assert read_json(target) == {"a": 1}
    write_json(target, {"a": 2}, force=True)
    assert read_json(target) == {"a": 2}


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        check_output(tmp_path / "file" / "x" / "out.json")


@pytest.mark.parametrize("below", ["out.json", "new/deep/out.json"])
def test_output_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    """The system's answer is set: whoever runs as root may write anywhere."""
    opened = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    expected = f"can't be written: Permission denied in {tmp_path}; choose another `out`"
    with pytest.raises(UserError, match=expected):
        check_output(tmp_path / below)
    assert names(tmp_path) == []


def test_checking_writes_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b.json", force=False)
    assert names(tmp_path) == []


def test_json_is_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1]})
    text = (tmp_path / "x.json").read_text()
    assert text.endswith("\n")
    assert text == json.dumps({"a": [1]}, indent=2) + "\n"


def test_reading_what_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="JSON"):
        read_json(tmp_path)


def killed_writer(folder: Path, name: str) -> Path:
    """What a process leaves that was killed while it wrote `name`."""
    work = folder / f".{name}.x7_3{PARTIAL}"
    work.mkdir()
    (work / ".lock").write_text("")
    (work / name).write_text("half")
    return work


def test_what_killed_writers_left_is_cleared_by_the_next_of_the_same_file(tmp_path: Path) -> None:
    killed_writer(tmp_path, "a.json")
    other = killed_writer(tmp_path, "b.json")
    (tmp_path / f".a.json.none{PARTIAL}").mkdir()  # killed before it had a lock
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == [other.name, "a.json"]


def test_what_a_living_writer_has_stays(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.json") as fresh:
        fresh.write_text("mine")
        write_json(tmp_path / "a.json", {"theirs": 1})
        assert fresh.read_text() == "mine"
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "mine"


def test_a_folder_whose_replacement_was_cut_off_is_put_back(tmp_path: Path) -> None:
    work = killed_writer(tmp_path, "model")
    (work / "replaced" / "model").mkdir(parents=True)
    (work / "replaced" / "model" / "precious").write_text("old")
    with pytest.raises(UserError, match="model"):
        check_output(tmp_path / "model", force=False, is_folder=True)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["precious"]


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(FileNotFoundError):
        swap(tmp_path / "gone", tmp_path / "model", tmp_path / "aside")
    assert "model" in names(tmp_path)


def test_modes_are_those_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "model") as fresh:
            fresh.mkdir()
            (fresh / "weights").write_text("")
            (fresh / "weights").chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o640


RUN = Kind("a run", holds_only({"run.json", "weights"}, mark="run.json", owns=has_format("run/1")))


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ({"run.json": '{"format": "run/1"}', "notes.txt": "mine"}, "notes.txt"),
        ({"run.json": '{"format": "npm"}', "weights": "w"}, "a run"),
        ({"run.json": "[1, 2", "weights": "w"}, "a run"),
        ({"weights": "w"}, "a run"),
        ({"run.json": '{"format": "run/1"}', "weights": "w"}, None),
        ({}, None),
    ],
)
def test_only_folders_of_ones_own_kind_are_replaced(
    tmp_path: Path, held: dict[str, str], named: str | None
) -> None:
    for name, text in held.items():
        (tmp_path / name).write_text(text)
    if named is None:
        check_output(tmp_path, is_folder=True, kind=RUN)
        return
    with pytest.raises(UserError, match=named):
        check_output(tmp_path, is_folder=True, kind=RUN)


@pytest.mark.parametrize("place", [".", "..", "../.."])
def test_the_current_folder_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for force in (False, True):
        with pytest.raises(UserError):
            check_output(Path(place), force, is_folder=True, kind=RUN)


SCHEDULE = Kind("a schedule", has_format("s/1", "s/2"))


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [
        ('{"format": "s/1"}', True),
        ('{"format": "s/2", "more": 1}', True),
        ("", True),  # nobody's, such as what `> file` has made before the command starts
        ('{"name": "package"}', False),
        ('["s/1"]', False),
        ('"s/1"', False),
        ("\udcff\udcfe", False),
        ("[" * 100_000, False),
        (" ", False),
    ],
)
def test_only_files_of_ones_own_kind_are_replaced(tmp_path: Path, text: str, is_ours: bool) -> None:
    path = tmp_path / "s.json"
    path.write_text(text, errors="surrogateescape")
    if is_ours:
        check_output(path, kind=SCHEDULE)
        return
    with pytest.raises(UserError, match=r"s\.json"):
        check_output(path, kind=SCHEDULE)


def test_an_empty_file_needs_no_force(tmp_path: Path) -> None:
    (tmp_path / "s.json").touch()
    check_output(tmp_path / "s.json", force=False, kind=SCHEDULE)
    (tmp_path / "s.json").write_text('{"format": "s/1"}')
    with pytest.raises(UserError, match=r"s\.json"):
        check_output(tmp_path / "s.json", force=False, kind=SCHEDULE)


def test_a_link_is_judged_by_its_target(tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_text('{"name": "package"}')
    (tmp_path / "s.json").symlink_to(tmp_path / "theirs.json")
    with pytest.raises(UserError, match=r"s\.json"):
        check_output(tmp_path / "s.json", kind=SCHEDULE)
    (tmp_path / "theirs.json").write_text('{"format": "s/1"}')
    check_output(tmp_path / "s.json", kind=SCHEDULE)


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
@pytest.mark.parametrize("kind", [None, SCHEDULE])
def test_devices_and_pipes_are_refused(tmp_path: Path, kind: Kind | None) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(UserError, match=path.name):
            check_output(path, kind=kind)


@pytest.mark.parametrize("suffix", some_of([".png"], [".png", ".svg", ".pdf"]))
def test_a_mark_in_metadata_is_found(tmp_path: Path, suffix: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6))
    figure.subplots().imshow(np.random.default_rng(0).random((900, 900)))
    field = "Software" if suffix == ".png" else "Creator"
    for name, metadata in (("ours", {field: MARK}), ("theirs", {})):
        figure.savefig(tmp_path / (name + suffix), metadata=metadata, dpi=200)
    assert is_marked((tmp_path / "ours").with_suffix(suffix))
    assert not is_marked((tmp_path / "theirs").with_suffix(suffix))


@pytest.mark.parametrize(
    ("error", "free", "told"),
    [
        (OSError(28, "No space left on device"), 0, "No space left on device"),
        (OSError(122, "Disk quota exceeded"), 10**9, "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected"), 100, "No space"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . x"), 10**9, r"\[enforce fail"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 10**9, "No space"),
        (PermissionError(13, "Permission denied"), 10**9, "Permission denied"),
        (RuntimeError("shapes differ"), 0, None),
    ],
)
def test_why_something_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, free: int, told: str | None
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    reason = why_not_written(error, tmp_path)
    if told is None:
        assert reason is None
    else:
        assert re.match(told, reason or "")


def test_a_file_name_that_is_no_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "names.csv", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "names.csv").read_bytes() == b"caf\xe9"


def test_the_second_is_told_who_holds_a_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock") as second:
        assert first is None
        assert second is not None
        assert second.startswith(f"process {os.getpid()} on {socket.gethostname()}, since 20")
    assert names(tmp_path) == []


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "lock"):
            os._exit(0)
    os.waitpid(child, 0)
    assert names(tmp_path) == ["lock"]
    with locked(tmp_path / "lock") as holder:
        assert holder is None
    assert names(tmp_path) == []
