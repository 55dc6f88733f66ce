"""Points on disk, and who may measure them."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.points import point
from tpcli import data
from tpcli.config.options import pooling_options
from tpcli.evaluation.run import RunOptions
from tpcli.models import load as load_module
from tpcli.models.load import load
from tpcli.pareto import ModelSource, SweepOptions, sweep
from tpcli.pareto.cache import PointCache, code_version
from tpcli.pareto.jobs import jobs, stored
from tpcli.pooling.backends import c as c_kernels
from tpcli.system.files import PARTIAL


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    cache = PointCache(tmp_path)
    before = point(0.5, 77.7, "ward")
    assert cache.get("k") is None
    cache.put("k", before)
    after = cache.get("k")
    assert after == before
    assert after is not None
    assert np.array_equal(after.each, before.each)


def test_half_written_entry_counts_as_missing(tmp_path: Path) -> None:
    cache = PointCache(tmp_path)
    cache.put("k", point(0.5, 77.7))
    entry = cache.folder / "k.json"
    entry.write_text(entry.read_text()[:40])
    assert cache.get("k") is None


@pytest.fixture(scope="module")
def source(model_folder: Path) -> ModelSource:
    loaded = load(str(model_folder))
    return ModelSource(loaded, data.create("demo", loaded.data_config, limit=8))


def key(source: ModelSource, at: int = 1, **changes: Any) -> str:
    """The key of a point: at 0 of the model, at 1 of its first pooled one."""
    run = RunOptions(device="cpu")
    named = {"poolings": [pooling_options("ward")], "budgets": [0.6], "run": run, **changes}
    return jobs([source], SweepOptions(**named), Path("unused"))[at].key


def other_source(source: ModelSource, what: str) -> ModelSource:
    loaded = copy.deepcopy(source.loaded)
    if what == "weights":
        with torch.no_grad():
            loaded.model.head.bias[0] += 1  # type: ignore[index, operator, union-attr]
        return replace(source, loaded=loaded)
    if what == "heads":
        loaded.model.blocks[0].attn.num_heads *= 2  # type: ignore[index, operator, union-attr]
        return replace(source, loaded=loaded)
    if what == "pool":
        loaded.model.global_pool = "max"
        return replace(source, loaded=loaded)
    config = dict(loaded.data_config)
    if what == "preprocessing":
        config["mean"] = (0.1, 0.1, 0.1)
    limit = 9 if what == "images" else 8
    return replace(source, data=data.create("demo", config, limit=limit))


def test_key_depends_on_every_determinant(
    source: ModelSource, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key(source) == key(replace(source, loaded=load(str(model_folder))))
    found = [
        key(source),
        key(source, at=0),
        key(source, poolings=[pooling_options("ward", metric="tokens")]),
        key(source, poolings=[pooling_options("k-means")]),
        key(source, budgets=[0.5]),
        key(source, run=RunOptions(device="cpu", amp=True)),
        key(source, run=RunOptions(device="cpu", strict=True)),
        key(source, run=RunOptions(7, "cpu")),
        *(
            key(other_source(source, what))
            for what in ("weights", "heads", "pool", "preprocessing", "images")
        ),
    ]
    for name, value in (
        ("tpcli.pareto.jobs.device_name", lambda device: "another machine"),
        ("torch.get_num_threads", lambda: 77),
        ("torch.__version__", "0"),
        ("timm.__version__", "0"),
        ("tpcli.pareto.cache.code_version", lambda is_trained: "other code"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            found.append(key(source))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("changed", ["pooling/backends/c/ward.c", "flops.py", "no loops"])
def test_the_code_is_all_that_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """C sources too, and whether they were built."""
    home = tmp_path / "tpcli"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "model")
    shutil.copytree(Path(load_module.__file__).parents[1], home, ignore=ignored)
    monkeypatch.setattr(load_module, "__file__", str(home / "models" / "load.py"))
    code_version.cache_clear()
    before = code_version()
    code_version.cache_clear()
    if changed == "no loops":
        monkeypatch.setattr(c_kernels, "kernels", object() if c_kernels.kernels is None else None)
    else:
        with (home / changed).open("a") as file:
            file.write(" ")
    assert code_version() != before
    code_version.cache_clear()


def damaged(entry: Path, how: str) -> None:
    """Damage the file of a point."""
    document = json.loads(entry.read_text())
    changes: dict[str, Any] = {
        "null": {"top1": None}, "infinite": {"loss": float("nan")}, "count": {"count": 999},
        "many": {"count": 10**9}, "no count": {"count": "x"}, "short": {"each": "AAAA"},
        "other answers": {"each": base64.b64encode(bytes(125)).decode()},
        "no base64": {"each": "\u00e9"}, "true": {"top1": True}, "no name": {"model": 3},
        "budget": {"budget": "much"}, "tokens": {"tokens": [1.5]}, "no tokens": {"tokens": None},
    }  # fmt: skip
    if how in changes:
        entry.write_text(json.dumps({**document, **changes[how]}))
    elif how == "older":
        del document["epochs"]
        entry.write_text(json.dumps(document))
    elif how == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        contents = {"binary": b"\xff\xfe\x00", "empty": b"", "list": b"[]", "text": b'"x"'}
        entry.write_bytes(contents[how])


@pytest.mark.parametrize(
    "how",
    ["null", "infinite", "count", "many", "no count", "short", "other answers", "no base64", "true",
     "no name", "budget", "tokens", "no tokens", "older", "folder", "binary", "empty", "list",
     "text"],
)  # fmt: skip
def test_a_damaged_entry_counts_as_missing(tmp_path: Path, how: str) -> None:
    cache = PointCache(tmp_path)
    cache.put("k", point(0.5, 77.7))
    damaged(cache.folder / "k.json", how)
    assert cache.get("k") is None
    with cache.claim("k") as mine:
        assert mine
    cache.put("k", point(0.5, 66.6))
    if how != "folder":  # which is no file of ours, and stays
        assert cache.get("k") == point(0.5, 66.6)


def test_an_entry_that_may_not_be_read_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's answer is set: whoever runs as root may read all."""

    def refuse(path: Path, *arguments: object, **named: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert PointCache(tmp_path).get("k") is None


def test_a_lock_of_another_user_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    cache = PointCache(tmp_path)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with cache.claim("k") as mine:
        assert mine


@pytest.mark.long
def test_a_cache_that_cannot_be_written_serves_what_it_has(
    source: ModelSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = SweepOptions([pooling_options("ward")], budgets=[0.6], run=RunOptions(device="cpu"))
    whole = sweep([source], options, tmp_path)

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("tempfile.TemporaryFile", "tempfile.mkdtemp", "filelock.FileLock.acquire"):
        monkeypatch.setattr(name, refuse)
    assert sweep([source], options, tmp_path).points == whole.points
    others = sweep([source], replace(options, budgets=[0.5]), tmp_path)
    assert others.points[0] == whole.points[0]
    assert others.measured == 1
    assert "Read-only file system" in caplog.text


def test_locks_and_litter_do_not_pile_up(tmp_path: Path) -> None:
    cache = PointCache(tmp_path)
    cache.put("k", point(0.5, 77.7))
    (cache.folder / "k.lock").write_text("")
    (cache.folder / f".gone.json.abc{PARTIAL}").mkdir()
    with cache.claim("other"):
        (cache.folder / "held.json").write_text("{}")
        with cache.claim("held"):
            PointCache(tmp_path)
            assert (cache.folder / "held.lock").exists()
    PointCache(tmp_path)
    assert sorted(os.listdir(cache.folder)) == ["held.json", "k.json"]


def test_what_a_search_left_that_died_after_writing_goes(tmp_path: Path) -> None:
    searches = tmp_path / "searches"
    searches.mkdir()
    for name in ("done.json", "done.part", "done.lock", "going.part", "going.lock"):
        (searches / name).write_text("{}")
    (searches / f".done.json.abc{PARTIAL}").mkdir()
    PointCache(tmp_path)
    assert sorted(os.listdir(searches)) == ["done.json", "going.lock", "going.part"]


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"tokens": {"0.6": [1, 2]}}'])
def test_a_damaged_search_is_made_again(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "search.json"
    assert stored(file, [0.6], depth=4) is None
    file.write_bytes(content)
    assert stored(file, [0.6], depth=4) is None
    file.write_text(json.dumps({"tokens": {"0.6": [9] * 4}}))
    assert stored(file, [0.6], depth=4) == {"0.6": (9,) * 4}


def test_the_code_of_training_counts_where_a_point_is_trained() -> None:
    assert code_version(is_trained=True) != code_version()


def test_claim_is_exclusive_and_dies_with_its_process(tmp_path: Path) -> None:
    cache = PointCache(tmp_path)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with cache.claim("k") as mine:
            os.write(tell, b"mine" if mine else b"held")
            signal.pause()
    try:
        assert os.read(told, 4) == b"mine"
        with cache.claim("k") as mine:
            assert not mine
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with cache.claim("k") as mine:
        assert mine
