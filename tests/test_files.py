"""Outputs are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tpcli.errors import TpcliError, UserError
from tpcli.files import check_output, read_json, replacing, write_json, write_text


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
    with pytest.raises(TpcliError, match=r"c\.txt could not be written: No space left"):
        write_text(tmp_path / "c.txt", "text")
    assert names(tmp_path) == []


def test_existing_output_needs_force(tmp_path: Path) -> None:
    target = tmp_path / "s.json"
    write_json(target, {"a": 1}, force=False)
    with pytest.raises(UserError, match=r"s\.json exists already; choose another `out` or add"):
        write_json(target, {"a": 2}, force=False)
    assert read_json(target) == {"a": 1}
    write_json(target, {"a": 2}, force=True)
    assert read_json(target) == {"a": 2}


def test_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; choose another `out`"):
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
    with pytest.raises(UserError, match=r"gone\.json does not exist; check the path"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match=r"bad\.json is not a readable JSON file"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="is not a readable JSON file"):
        read_json(tmp_path)
