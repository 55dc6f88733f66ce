"""Every file under the root counts, or is named as unreadable, or is said to be left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.images import class_folders, picture, tar_of, truncate
from tpcli.data import (
    UNREADABLE,
    Head,
    ImageData,
    LeftOut,
    Unmatched,
    create,
    describe,
    match_classes,
)
from tpcli.data.listing import natural_key, suffixes
from tpcli.errors import UserError

from .test_open import CONFIG, everything

PAIR = ("cat", "dog")


def unreadable(data: ImageData) -> list[str]:
    _, targets = everything(data)
    return [name for name, target in zip(data.names, targets, strict=True) if target == UNREADABLE]


def left_out(data: ImageData) -> set[tuple[str, str]]:
    return {(entry.name, entry.why) for entry in data.left_out}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "set", per_class=2, classes=PAIR)


@pytest.mark.parametrize(
    "suffix", ["webp", "bmp", "tif", "TIFF", "gif", "ppm", "jfif", "jp2", "tga", "JPEG", "ico"]
)
def test_every_suffix_that_pillow_reads(folder: Path, suffix: str) -> None:
    picture(5).save(folder / "cat" / f"more.{suffix}")
    found = create(str(folder), CONFIG)
    assert found.count == 5
    assert unreadable(found) == []


def test_formats_that_run_other_programs_are_not_decoded(folder: Path) -> None:
    assert not {".eps", ".ps", ".wmf", ".h5", ".mpg", ".pdf"} & suffixes()
    picture(5).save(folder / "cat" / "drawing.eps")
    (folder / "cat" / "drawing.eps").rename(folder / "cat" / "drawing.png")
    assert unreadable(create(str(folder), CONFIG)) == ["cat/drawing.png"]


def test_hidden_things_and_other_kinds_are_left_out_with_the_reason(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "._0.png").write_bytes(b"x")
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / "list").write_text("x")
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        class_folders(folder / name, per_class=1, classes=("cat",))
    picture(9).save(folder / "sample.png")
    found = create(str(folder), CONFIG)
    assert (found.count, tuple(found.classes)) == (4, PAIR)
    assert left_out(found) == {
        (".DS_Store", "hidden"),
        ("cat/._0.png", "hidden"),
        ("cat/notes.txt", "no image by its name"),
        ("cat/list", "no image by its name"),
        (".ipynb_checkpoints", "hidden"),
        ("__MACOSX", "hidden"),
        ("@eaDir", "hidden"),
        ("sample.png", "beside the class folders"),
    }
    packed = create(str(tar_of(folder, folder.parent / "set.tar")), CONFIG)
    assert packed.count == 4
    assert {"sample.png", "cat/notes.txt", "__MACOSX"} <= {e.name for e in packed.left_out}


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    (folder / "bird").mkdir()
    found = create(str(folder), CONFIG)
    assert tuple(found.classes) == PAIR
    assert found.empty_folders == ("bird",)


def test_a_summary_names_some_of_each_kind() -> None:
    entries = [LeftOut(f"{i}.txt", "no image by its name") for i in range(5)]
    text = describe([*entries, LeftOut(".x", "hidden")])
    assert text == "no image by its name: 5 (0.txt, 1.txt, 2.txt, ...); hidden: 1 (.x)"
    assert describe([]) == ""


@pytest.mark.parametrize("kind", ["fifo", "link to nowhere", "link to itself", "link to /dev/zero"])
def test_what_is_no_regular_file_is_unreadable_and_nothing_waits(folder: Path, kind: str) -> None:
    odd = folder / "cat" / "odd.jpg"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        target = {"nowhere": "gone.jpg", "itself": "odd.jpg", "/dev/zero": "/dev/zero"}
        odd.symlink_to(target[kind.split()[-1]])
    found = create(str(folder), CONFIG)
    assert unreadable(found) == ["cat/odd.jpg"]
    assert len(found.fingerprint) == 64


def test_a_fifo_is_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.tar")
    with pytest.raises(UserError, match=r"set\.tar"):
        create(str(tmp_path / "set.tar"), CONFIG)


def test_links_to_folders_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "cat").rename(tmp_path / "elsewhere" / "cat")
    (folder / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (folder / "dog" / "again").symlink_to(folder)
    found = create(str(folder), CONFIG)
    assert found.count == 4
    assert left_out(found) == {("dog/again", "a link to a folder above it")}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cant_be_listed_is_an_error(folder: Path) -> None:
    (folder / "cat").chmod(0)
    with pytest.raises(UserError, match="cat"):
        create(str(folder), CONFIG)


def test_names_that_are_no_utf8(folder: Path) -> None:
    file = folder / "cat" / os.fsdecode(b"caf\xe9.png")
    picture(7).save(file)
    found = create(str(folder), CONFIG)
    assert (found.count, unreadable(found)) == (5, [])
    before = found.fingerprint
    truncate(file)
    broken = create(str(folder), CONFIG)
    assert unreadable(broken) == [os.fsdecode(b"cat/caf\xe9.png")]
    assert broken.fingerprint != before
    packed = create(str(tar_of(folder, folder.parent / "set.tar")), CONFIG)
    assert unreadable(packed) == [os.fsdecode(b"cat/caf\xe9.png")]


def test_order_is_natural_and_settled() -> None:
    names = ["b10", "b2", "A1", "a1", "b02", "²", "x٣", "9" * 5000]
    settled = sorted(names, key=natural_key)
    backwards = settled[::-1]
    assert sorted(backwards, key=natural_key) == settled
    assert settled.index("b2") < settled.index("b10")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["cat/images/0", "dog/images/0"], ["cat", "dog"]),
        (["cat/images/a/0", "dog/images/a/0"], ["cat", "dog"]),
        (["cat/images/0"], ["cat"]),
        (["pets/cat/0", "pets/dog/0"], ["cat", "dog"]),
        (["pets/cat/0", "wild/wolf/0"], ["cat", "wolf"]),
        (["data/data/cat/0", "data/data/dog/0"], ["cat", "dog"]),
    ],
)
def test_nested_class_folders(tmp_path: Path, paths: list[str], expected: list[str]) -> None:
    for i, path in enumerate(paths):
        file = tmp_path / "set" / f"{path}.png"
        file.parent.mkdir(parents=True)
        picture(i).save(file)
    for data in (tmp_path / "set", tar_of(tmp_path / "set", tmp_path / "set.tar")):
        found = create(str(data), CONFIG)
        assert list(found.classes) == expected
        assert everything(found)[1] == list(range(len(expected)))


def folder_and_tar(home: Path, paths: list[str]) -> tuple[Path, Path]:
    """A picture at each of the paths, in a folder and in a .tar of it."""
    for i, path in enumerate(paths):
        file = home / "set" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(file)
    return home / "set", tar_of(home / "set", home / "set.tar")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a/cat/0", "a/dog/0", "b/cat/0", "b/dog/0"], "cat/.*a/.*b/"),
        (["cat/front/0", "dog/front/0", "dog/back/0"], "front/.*cat/.*dog/"),
    ],
)
def test_folders_that_could_be_read_in_two_ways(
    tmp_path: Path, paths: list[str], words: str
) -> None:
    for data in folder_and_tar(tmp_path, paths):
        with pytest.raises(UserError, match=words):
            create(str(data), CONFIG)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["0", "1"], "class folders"),
        (["cat/0", "cat/old/1", "dog/0"], "cat/ and in cat/old/"),
        (["cat/0", "pets/dog/0"], "cat/ and in pets/dog/"),
    ],
)
def test_images_without_classes_are_data_without_labels(
    tmp_path: Path, paths: list[str], words: str
) -> None:
    for data in folder_and_tar(tmp_path, paths):
        found = create(str(data), CONFIG)
        assert found.names == [f"{path}.png" for path in paths]
        assert (list(found.classes), everything(found)[1]) == ([], [-1] * len(paths))
        with pytest.raises(Unmatched, match=words) as error:
            match_classes(found, Head("m", 2))
        assert "measure=agreement" in str(error.value)
        with pytest.raises(UserError, match=words):
            create(str(data), CONFIG, class_map={"cat": 0})
