"""Settings of a project: tpcli.toml and the [tool.tpcli] of pyproject.toml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Optional

import pytest

import tpcli
from tests.helpers.cli import Run
from tpcli.cli import main as main_module
from tpcli.cli.option_groups import _declared
from tpcli.cli.settings import command_line


def write(folder: Path, text: str, name: str = "tpcli.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("name", ["tpcli.toml", "pyproject.toml"])
def test_settings_are_defaults_of_every_command(
    run: Run, tmp_path: Path, model_folder: Path, name: str
) -> None:
    head = "tool.tpcli" if name == "pyproject.toml" else ""
    table = f"[{head}]\n" if head else ""
    sub = f"[{head}.flops]" if head else "[flops]"
    write(tmp_path, f'{table}schedule = "r:5"\nmethod = "tome"\n{sub}\nmetric = "keys"\n', name)
    found = run("flops", model_folder, "--json").document
    assert found["schedule"] == "r:5"
    assert found["method"]["method"] == "tome"
    assert command_line().endswith("--json --metric keys --schedule r:5 --method tome")
    typed = run("flops", model_folder, "--schedule=r:7", "--json").document
    assert typed["schedule"] == "r:7"
    assert "--schedule r:5" not in command_line()
    assert "[default: r:5]" in run("apply", "--help").out
    repeatable = ("bench", model_folder, "--batch-size", 1, "--seconds", 0, "--json")
    assert run(*repeatable).document["method"] == "tome"


def test_the_nearest_settings_count(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 'schedule = "r:5"')
    write(tmp_path / "a", "[tool.other]", "pyproject.toml")
    (tmp_path / "a" / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert "[default: r:5]" in run("apply", "--help").out
    write(tmp_path / "a", '[tool.tpcli]\nschedule = "r:6"', "pyproject.toml")
    assert "[default: r:6]" in run("apply", "--help").out
    own = write(tmp_path / "a", 'schedule = "r:7"')
    assert "[default: r:7]" in run("apply", "--help").out
    assert run("env", "--json").document["settings"] == str(own)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shedule = 'r:5'", "has the key 'shedule', which is no option of any command. Did you"),
        ("json = true", "has the key 'json'"),
        ("force = true", "has the key 'force'"),
        ("[eva]\nlimit = 3", "has the table 'eva', which is no command. Did you mean eval"),
        ("[bench]\nlimit = 3", "bench has the key 'limit', which is no option of this command"),
        ("[finetune]\nepochs = true", "finetune: epochs = True can't be used"),
        ("limit = [3]", "limit = [3] can't be used; give one value"),
        ("device = 3", "device = 3 can't be used; give text in quotes"),
        ("device = 'gpu'", "device 'gpu' is unknown; use one of auto"),
        ("[flops]\ndevice = 'cpu'", "flops has the key 'device'"),
        ("limit = ", "is not a readable TOML file"),
    ],
)
def test_what_is_wrong_there_is_said(run: Run, tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path, text)
    found = run("eval")
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert str(file) in found.err
    assert told in found.err


def test_the_config_of_fine_tuning_wins_over_them(run: Run, tmp_path: Path) -> None:
    write(tmp_path, "[finetune]\nlr = 5000.0\nmixup = 0.5")
    write(tmp_path, "mixup = 5e9", "recipe.toml")
    found = run("finetune", "--lr", 1, "--config", "recipe.toml")
    assert "--config recipe.toml: mixup '5000000000.0' is out of range" in found.err
    found = run("finetune", "--mixup", 0, "--config", "recipe.toml")
    assert f"{tmp_path / 'tpcli.toml'}: lr '5000.0' is out of range" in found.err


def test_env_says_what_a_bug_report_needs(run: Run) -> None:
    found = run("env", "--json").document
    assert found["tpcli"].startswith(tpcli.__version__)
    assert {"Python", "system", "torch", "timm", "onnxruntime", "device", "cache"} <= found.keys()
    assert found["CPU kernels"].startswith(("compiled", "torch's operators"))
    said = run("env").out
    assert json.dumps(found["torch"]).strip('"') in said
    assert "env" in main_module.COMMANDS


def test_hints_are_as_they_were_written() -> None:
    """Python 3.10 makes those with a default of None optional, which typer takes for one value."""
    wanted = Annotated[list[str] | None, "many"]
    assert _declared(Optional[wanted]) == wanted  # noqa: UP045
    assert _declared(wanted) == wanted
    assert _declared(int | None) == int | None


@pytest.mark.parametrize(
    "text", ["batch_size = 3\nbatch-size = 4", "[eval]\nimg-size=3\nimg_size=3"]
)
def test_one_option_under_two_spellings_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    found = run("eval")
    assert found.code == 2
    assert str(tmp_path / "tpcli.toml") in found.err
    assert "_size" in found.err
    assert "-size" in found.err


@pytest.mark.parametrize("name", ["tpcli.toml", "pyproject.toml"])
def test_a_byte_order_mark_is_no_key(run: Run, tmp_path: Path, name: str) -> None:
    head = "[tool.tpcli]\n" if name == "pyproject.toml" else ""
    (tmp_path / name).write_text(f'{head}schedule = "r:5"\n', encoding="utf-8-sig")
    assert "r:5" in run("apply", "--help").out


def test_one_value_serves_commands_that_take_several(run: Run, tmp_path: Path) -> None:
    """`bench` takes several batch sizes, `eval` one."""
    write(tmp_path, "batch_size = 3")
    assert "[default: 3]" in " ".join(run("eval", "--help").out.split())
    assert run("bench", "--help").code == 0


@pytest.mark.parametrize("how", ["folder", "file", "owner"])
def test_settings_that_others_could_write_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """With a word on stderr, as they could set which weights are loaded."""
    file = write(tmp_path / "a", 'schedule = "half"')
    if how == "owner":
        if not hasattr(os, "getuid") or os.getuid():
            pytest.skip("only root can give files away")
        os.chown(file, 12345, -1)
    else:
        (file if how == "file" else file.parent).chmod(0o777)
    monkeypatch.chdir(file.parent)
    found = run_here("methods")
    assert found.returncode == 0
    assert str(file) in found.stderr
    if how == "folder":  # as in /tmp: nobody can replace another's file
        file.parent.chmod(0o1777)
        assert run_here("flops").returncode == 2


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program in the current folder."""
    command = [sys.executable, "-m", "tpcli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
