"""Paths with ~, homes and caches that are not there or can't be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cli import Run
from tests.helpers.images import class_folders

SWEEP = ("pareto", "--limit", 4, "--workers", 0, "--device", "cpu", "--budget", "0.6",
         "--method", "ward", "--family", "default", "--out", "p.png")  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooled_folder: Path) -> Path:
    """A home folder with a model, and nothing called ~ anywhere."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (folder / "model").symlink_to(pooled_folder)
    return folder


def test_paths_of_options_and_arguments(run: Run, home: Path) -> None:
    class_folders(home / "data", per_class=1)
    found = run("apply", "~/model", "--schedule", "r:3", "--out=~/out", "--json")
    assert found.code == 0, found.err
    assert (home / "out" / "config.json").is_file()
    for spec in ("~/out", "local-dir:~/out"):
        shown = run("eval", spec, "--data", "~/data", "--workers", 0, "--device", "cpu", "--json")
        assert shown.code == 0, shown.err
    assert not Path("~").exists()


def test_paths_of_settings_and_schedules(run: Run, home: Path) -> None:
    tokens = run("flops", "~/model", "--schedule", "r:3", "--json").document["blocks"]
    counts = [block["tokens_out"] for block in tokens]
    document = {"format": "tpcli-schedule/1", "tokens": counts}
    (home / "s.json").write_text(json.dumps(document))
    Path("tpcli.toml").write_text('schedule = "~/s.json"\nout = "~/out"\n')
    found = run("apply", "~/model")
    assert found.code == 0, found.err
    assert (home / "out" / "config.json").is_file()
    Path("tpcli.toml").unlink()
    Path("r.toml").write_text('model = "~/model"\nout = "~/tuned"\ndata = "~/none"\n')
    assert "home/none" in run("finetune", "--config", "r.toml").err


@pytest.mark.long
@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/dev/null", "XDG_CACHE_HOME": ""},
        {"XDG_CACHE_HOME": "/dev/null"},
        {"XDG_CACHE_HOME": "/proc/nowhere"},
    ],
)
def test_a_sweep_needs_no_cache(
    run: Run, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = run(*SWEEP)
    assert found.code == 0, found.err
    assert found.err.count("not kept") == 1
    assert Path("p.json").is_file()


def test_a_relative_cache_variable_is_ignored(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert run(*SWEEP).code == 0
    assert not Path("here").exists()
    assert (home / ".cache" / "tpcli" / "points").is_dir()


@pytest.mark.parametrize("command", ["flops", "methods"])
def test_the_current_folder_is_gone(tmp_path: Path, command: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); sys.argv = ['tpcli', sys.argv[1]];"
    code += "from tpcli.cli.main import main; main()"
    path = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
