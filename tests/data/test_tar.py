"""A .tar is what it would be unpacked, and a broken one is refused."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from tests.helpers.images import class_folders, picture, tar_of
from tpcli.data import create
from tpcli.errors import UserError

from .test_listing import PAIR, left_out, unreadable
from .test_open import CONFIG, everything


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "png")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **attributes: object) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in attributes.items():
        setattr(entry, key, value)
    tar.addfile(entry, io.BytesIO(content))


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return tar_of(class_folders(tmp_path / "set", classes=PAIR), tmp_path / "set.tar")


def test_links_inside_are_followed(tmp_path: Path) -> None:
    file = tmp_path / "set.tar"
    with tarfile.open(file, "w") as tar:
        add(tar, "./cat/0.png", png(1))
        add(tar, "./dog/hard.png", type=tarfile.LNKTYPE, linkname="./cat/0.png")
        add(tar, "dog/soft.png", type=tarfile.SYMTYPE, linkname="../cat/0.png")
        add(tar, "dog/twice.png", type=tarfile.SYMTYPE, linkname="soft.png")
        add(tar, "dog/lost.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "dog/round.png", type=tarfile.SYMTYPE, linkname="round.png")
        add(tar, "dog/fifo.png", type=tarfile.FIFOTYPE)
        add(tar, "dog/notes.txt", type=tarfile.SYMTYPE, linkname="soft.png")
    found = create(str(file), CONFIG)
    assert unreadable(found) == ["dog/lost.png", "dog/round.png"]
    assert left_out(found) == {
        ("dog/fifo.png", "no regular file"),
        ("dog/notes.txt", "no image by its name"),
    }
    images, targets = everything(found)
    same = [i for i, name in enumerate(found.names) if name not in unreadable(found)]
    assert [targets[i] for i in same] == [0, 1, 1, 1]
    assert all(torch.equal(images[i], images[0]) for i in same)


def test_a_later_file_replaces_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "set.tar"
    with tarfile.open(file, "w") as tar:
        add(tar, "cat/0.png", b"broken")
        add(tar, "cat/0.png", png(3))
    found = create(str(file), CONFIG)
    assert (found.count, unreadable(found)) == (1, [])
    assert left_out(found) == {("cat/0.png", "replaced by a later file of its name")}


def test_archives_of_classes_in_an_archive(tmp_path: Path) -> None:
    file = tmp_path / "train.tar"
    folder = class_folders(tmp_path / "set", classes=PAIR)
    with tarfile.open(file, "w") as tar:
        for name in PAIR:
            tar.add(tar_of(folder / name, tmp_path / f"{name}.tar"), f"{name}.tar")
    found = create(str(file), CONFIG)
    assert found.names == [f"{name}/{i}.png" for name in PAIR for i in range(3)]
    loose, packed = everything(create(str(folder), CONFIG)), everything(found)
    assert torch.equal(loose[0], packed[0])
    assert loose[1] == packed[1]


@pytest.mark.parametrize("size", [1, 511, 700, 4096, 5000])
def test_a_tar_that_is_cut_off(tar: Path, size: int) -> None:
    with tarfile.open(tar) as whole:
        assert whole.getmembers()
        end = whole.offset
    tar.write_bytes(tar.read_bytes()[: min(size, end)])
    with pytest.raises(UserError, match=r"set\.tar"):
        create(str(tar), CONFIG)


def test_a_tar_that_ends_between_two_files_or_goes_on(tar: Path) -> None:
    content = tar.read_bytes()
    with tarfile.open(tar) as whole:
        second = whole.getmembers()[1].offset
        end = whole.offset
    tar.write_bytes(content[:second])
    with pytest.raises(UserError, match="cut off"):
        create(str(tar), CONFIG)
    tar.write_bytes(content[:second] + b"x" * 512 + content[second:])
    with pytest.raises(UserError, match=f"byte {second}"):
        create(str(tar), CONFIG)
    tar.write_bytes(content + content)
    with pytest.raises(UserError, match="end mark"):
        create(str(tar), CONFIG)
    tar.write_bytes(content[: end + 1024])
    assert create(str(tar), CONFIG).count == 6


@pytest.mark.parametrize(("mode", "program"), [("w:gz", "gzip"), ("w:bz2", "bzip2")])
def test_a_compressed_tar(tmp_path: Path, mode: str, program: str) -> None:
    file = tmp_path / "set.tar"
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        add(tar, "cat/0.png", png(1))
    with pytest.raises(UserError, match=program):
        create(str(file), CONFIG)


def test_no_index_is_written_and_none_is_read(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tar.parent / "_set_tarinfos.pickle").write_bytes(b"no pickle")
    before = {path.name for path in tar.parent.iterdir()}
    with tarfile.open(tar) as whole:
        last = whole.getmembers()[-1].offset
    with tar.open("r+b") as file:  # 12 GB by its header, a hole on the disk
        file.seek(last)
        hole = tarfile.TarInfo("cat/hole.bin")
        hole.size = 12 * 2**30
        file.write(hole.tobuf(format=tarfile.GNU_FORMAT))
        file.truncate(file.tell() + hole.size + 1024)
    assert create(str(tar), CONFIG).count == 5
    assert {path.name for path in tar.parent.iterdir()} == before


def test_a_tar_in_several_processes_and_pickled(tar: Path) -> None:
    found = create(str(tar), CONFIG)
    images, _ = everything(found)
    again, _ = everything(pickle.loads(pickle.dumps(found)))
    assert torch.equal(images, again)
