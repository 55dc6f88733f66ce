"""Class folders are matched with the head's classes by name; what is odd is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data import ImageNetInfo

from tests.helpers.images import class_folders
from tests.helpers.models import tiny_vit
from tpcli.data import Head, create, match_classes, read_class_map
from tpcli.data.classes import match
from tpcli.errors import UserError
from tpcli.evaluation.run import evaluate

from .test_open import CONFIG, everything

NAMES = ("airplane", "bird", "great white shark", "tree_frog")
HEAD = Head("mine", 4, NAMES)
UNNAMED = Head("mine", 4)
IMAGENET = Head("deit", 1000)


def test_by_name_in_the_heads_own_order() -> None:
    assert match("d", ["c1", "c2", "c10"], Head("m", 3, ("c1", "c10", "c2"))) == (0, 2, 1)
    assert match("d", ["Bird", "Great-White_Shark", "TREE frog"], HEAD) == (1, 2, 3)


def test_a_name_as_it_is_written_comes_before_one_in_other_capitals() -> None:
    assert match("d", ["us", "US"], Head("m", 2, ("US", "us"))) == (1, 0)


@pytest.mark.parametrize("odd", ["zebra", ".hidden", "birds"])
def test_an_odd_folder_is_named(odd: str) -> None:
    with pytest.raises(UserError, match=rf"^{odd}/.*class_map"):
        match("d", ["airplane", "bird", odd], HEAD)


def test_other_classes_altogether() -> None:
    with pytest.raises(UserError, match=r"cat/.*mine"):
        match("d", ["cat", "dog", "fox", "owl"], HEAD)


def test_two_folders_for_one_class() -> None:
    with pytest.raises(UserError, match="bird/ and Bird/"):
        match("d", ["bird", "Bird"], HEAD)


def test_numbered_folders_and_numbered_heads_go_by_position() -> None:
    for first in (0, 1):
        numbers = [str(i + first) for i in range(4)]
        assert match("d", numbers, HEAD) == (0, 1, 2, 3)
        assert match("d", numbers, UNNAMED) == (0, 1, 2, 3)
    labels = Head("m", 4, tuple(f"LABEL_{i}" for i in range(4)))
    assert match("d", ["a", "b", "c", "d"], labels) == (0, 1, 2, 3)
    with pytest.raises(UserError, match=r"0/ to 4/.*class_map"):
        match("d", ["0", "1", "3", "4"], HEAD)
    with pytest.raises(UserError, match="10/"):
        match("d", [str(i + 1) for i in range(10)], Head("m", 10, tuple(map(str, range(10)))))


def test_imagenet_by_wordnet_ids() -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    chosen = [synsets[i] for i in (6, 217, 999)]
    assert match("imagenet-a", chosen, IMAGENET) == (6, 217, 999)
    assert match("imagenet", synsets, IMAGENET) == tuple(range(1000))
    with pytest.raises(UserError, match="n99999999/"):
        match("d", [*chosen, "n99999999"], IMAGENET)
    named = Head("deit", 1000, tuple(f"thing {i}" for i in range(1000)))
    assert match("imagenet-a", chosen, named) == (6, 217, 999)
    large = ImageNetInfo("imagenet-12k").label_names()
    assert match("d", large[5:8], Head("m", 11821)) == (5, 6, 7)


DESCRIPTIONS = [str(text) for text in ImageNetInfo("imagenet-1k").label_descriptions()]
FIRST = [text.split(",")[0] for text in DESCRIPTIONS]
TWINS = ("crane", "cardigan", "maillot")
"""First names of two classes each, at least without capitals."""


def twins(name: str) -> list[int]:
    return [i for i, first in enumerate(FIRST) if first.casefold() == name]


@pytest.mark.parametrize("name", ["crane", "Crane", "crane-"])
def test_a_name_of_two_classes_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        match("d", ["dog", name], Head("m", 4, ("crane", "dog", "crane", "cat")))


@pytest.mark.parametrize(
    "written",
    [str, str.upper, lambda name: name.replace(" ", "_"), lambda name: name.replace(" ", "-")],
    ids=["as it is", "capitals", "underscores", "dashes"],
)
def test_imagenet_by_english_names(written: Any) -> None:
    chosen = [i for i, first in enumerate(FIRST) if first.casefold() not in TWINS]
    folders = sorted(written(FIRST[i]) for i in chosen)
    place = {written(FIRST[i]): i for i in chosen}
    for head in (IMAGENET, Head("deit", 1000, tuple(DESCRIPTIONS))):
        assert match("d", folders, head) == tuple(place[name] for name in folders)
    assert match("d", ["Tinca tinca", "goldfish, Carassius auratus"], IMAGENET) == (0, 1)


@pytest.mark.parametrize("name", [*TWINS, "Cardigan", "panther", "CRANE"])
def test_ambiguous_english_names_are_refused(name: str) -> None:
    for head in (IMAGENET, Head("deit", 1000, tuple(DESCRIPTIONS))):
        with pytest.raises(UserError, match=name):
            match("d", ["tench", name], head)


def test_one_english_name_that_is_none_is_named() -> None:
    folders = [*FIRST[:10], "crane 2"]
    with pytest.raises(UserError, match="crane 2/"):
        match("d", folders, IMAGENET)


def test_data_sets_with_a_heads_own_names_have_its_order() -> None:
    """As those of ILSVRC on the Hub, where two classes are called crane."""
    assert match("hfds/x", FIRST, IMAGENET, are_folders=False) == tuple(range(1000))
    assert match("hfds/x", DESCRIPTIONS, IMAGENET, are_folders=False) == tuple(range(1000))
    swapped = [FIRST[1], FIRST[0], *FIRST[2:]]
    with pytest.raises(UserError, match=FIRST[1]):
        match("hfds/x", swapped, IMAGENET, are_folders=False)
    large = Head("large", 21841)
    synsets = ImageNetInfo("imagenet-22k").label_names()
    assert match("d", [f"{synsets[i]}-{i}" for i in (5, 3)], large) == (5, 3)


@pytest.mark.parametrize("between", ["-", "_", " ", "."])
def test_wordnet_ids_with_a_name_behind_them(between: str) -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    folders = [f"{synsets[i]}{between}{FIRST[i]}" for i in (151, 0, 517)]
    assert match("d", folders, IMAGENET) == (151, 0, 517)
    with pytest.raises(UserError, match="n02085620"):
        match("d", ["n02085620-Chihuahua", "n02085620_dog"], IMAGENET)


def test_names_in_another_form_of_unicode() -> None:
    names = ("caf\u00e9", "stra\u00dfe", "\u00c5ngstr\u00f6m")
    head = Head("m", 3, names)
    folders = ["cafe\u0301", "STRASSE", "A\u030angstro\u0308m"]
    assert match("d", folders, head) == (0, 1, 2)


@pytest.mark.parametrize("padded", [False, True])
def test_folders_that_are_indices(padded: bool) -> None:
    def named(*numbers: int) -> list[str]:
        return [f"{n:04d}" if padded else str(n) for n in numbers]

    assert match("d", named(0, 217, 482), IMAGENET) == (0, 217, 482)
    assert match("d", named(0, 2, 3), HEAD) == (0, 2, 3)
    assert match("d", named(*range(4)), HEAD) == (0, 1, 2, 3)
    assert match("d", named(1, 2, 3, 4), HEAD) == (0, 1, 2, 3)
    for odd in ([217, 482], [0, 217, 1000], [5, 6], [0, 1, 2], [1, 2, 4]):
        with pytest.raises(UserError):
            match("d", named(*odd), IMAGENET)
    with pytest.raises(UserError, match="1/ and 01/"):
        match("d", ["0", "1", "01", "3"], HEAD)


def test_positions_are_told(caplog: pytest.LogCaptureFixture) -> None:
    match("by name", list(NAMES), HEAD)
    match("by number", ["1", "2", "3", "4"], UNNAMED)
    assert not caplog.records
    match("by position", ["a", "b", "c", "e"], UNNAMED)
    match("by position", ["a", "b", "c", "e"], UNNAMED)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    match("by index", ["0", "2", "3"], UNNAMED)
    assert len(caplog.records) == 2


def test_numbers_of_classes_of_an_unnamed_head() -> None:
    assert match("d", ["a", "b", "c", "e"], UNNAMED) == (0, 1, 2, 3)
    with pytest.raises(UserError, match="num_classes=3"):
        match("d", ["a", "b", "c"], UNNAMED)
    with pytest.raises(UserError, match="x/") as e:
        match("d", ["a", "b", "c"], UNNAMED, ["x"])
    assert "num_classes" not in str(e.value)
    with pytest.raises(UserError, match="images/"):
        match("d", ["images"], UNNAMED)
    with pytest.raises(UserError, match="mine"):
        match("d", ["a", "b"], Head("mine", 0))


def test_data_sets_of_timms_keep_their_order_unless_all_names_fit() -> None:
    for classes in (["plane", "bird", "shark", "frog"], ["x", "y", "z", "Tree-Frog"]):
        assert match("torch/x", classes, HEAD, are_folders=False) == (0, 1, 2, 3)
    with pytest.raises(UserError, match="'bird'"):
        match("torch/x", ["bird", "x", "y", "z"], HEAD, are_folders=False)
    assert match("torch/x", ["bird", "airplane"], HEAD, are_folders=False) == (1, 0)
    with pytest.raises(UserError, match="3 classes"):
        match("torch/x", ["a", "b", "c"], HEAD, are_folders=False)


def test_names_that_dont_fit_the_head_are_none() -> None:
    model = tiny_vit()
    model.pretrained_cfg = {"label_names": ["a", "b"]}  # of another head, by --num-classes
    assert Head.of(model, "m") == Head("m", 10)
    for names in (list("abcdefghij"), {str(i): c for i, c in enumerate("abcdefghij")}):
        model.pretrained_cfg = {"label_names": names}
        assert Head.of(model, "m").names == tuple("abcdefghij")
    assert Head.of(torch.compile(model)).size == 10


def test_targets_are_indices_into_the_head(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", per_class=2, classes=("bird", "airplane", "empty"))
    for file in (folder / "empty").iterdir():
        file.unlink()
    (folder / "bird" / "0.png").write_bytes(b"")
    found = create(str(folder), CONFIG, limit=4)
    assert everything(found)[1] == [0, 0, -100, 1]
    matched = match_classes(found, Head("m", 3, ("zebra", "bird", "airplane")))
    assert everything(matched)[1] == [2, 2, -100, 1]
    assert matched.fingerprint != found.fingerprint
    assert match_classes(matched, Head("m", 3)) is matched
    with pytest.raises(UserError, match="empty/"):
        match_classes(found, Head("m", 3))


def test_evaluation_matches_names_by_itself(tmp_path: Path) -> None:
    names = tuple(f"c{i}" for i in range(10))
    data = create(str(class_folders(tmp_path / "set", classes=names)), CONFIG)
    model = tiny_vit()
    with torch.no_grad():
        model.head.bias[3] += 100
    assert evaluate(model, data, device="cpu").correct.tolist() == [i // 3 == 3 for i in range(30)]
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": names[::-1]}
    assert evaluate(model, data, device="cpu").correct.tolist() == [i // 3 == 6 for i in range(30)]
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["x", *names[1:]]}
    with pytest.raises(UserError, match="c0/"):
        evaluate(model, data, device="cpu")


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("txt", "cat\n\ndog\n"),
        ("csv", "folder,index\ncat,0\ndog,2\n"),
        ("csv", '"cat",0\n\ndog, 2\n'),
        ("json", '{"cat": 0, "dog": 2}'),
        ("JSON", '["cat", "other", "dog"]'),
    ],
)
def test_class_maps(tmp_path: Path, suffix: str, text: str) -> None:
    file = tmp_path / f"map.{suffix}"
    file.write_text(text)
    class_map = read_class_map(file)
    assert (class_map["cat"], class_map["dog"]) == (0, 2)
    folder = class_folders(tmp_path / "set", per_class=1, classes=("bus", "cat", "dog"))
    found = create(str(folder), CONFIG, class_map=class_map)
    assert everything(found)[1] == [0, 2]
    assert found.names == ["cat/0.png", "dog/0.png"]
    assert found.left_out == (("bus", "not in the class map"),)
    assert match_classes(found, UNNAMED).indices == (0, 2)
    with pytest.raises(UserError, match="index 2"):
        match_classes(found, Head("m", 2))
    with pytest.raises(UserError, match="demo"):
        create("demo", CONFIG, class_map=class_map)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.txt", b"", r"m\.txt"),
        ("m.txt", b"caf\xe9", r"m\."),
        ("m.txt", b"cat\ncat", "'cat'"),
        ("m.csv", b"cat,0\ndog", "'dog'"),
        ("m.csv", b"cat,0\ndog,-1", "'dog,-1'"),
        ("m.json", b"{", r"m\."),
        ("m.json", b"3", r"m\.json"),
        ("m.json", b'{"cat": "0"}', r"'cat'.*'0'"),
        ("m.json", b'{"cat": -1}', "-1"),
        ("m.json", b'{"cat": true}', "True"),
        ("m.json", b'{"cat": 0, "cat": 1}', "'cat'"),
        ("m.json", b"[" * 100_000, r"m\."),
        ("m.pkl", b"", r"m\.pkl"),
    ],
)
def test_broken_class_maps(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_class_map(file)
    with pytest.raises(UserError, match=r"none\.txt"):
        read_class_map(tmp_path / "none.txt")


def test_a_class_map_of_other_folders(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "set", per_class=1, classes=("cat",))
    with pytest.raises(UserError, match=r"'cat'"):
        create(str(folder), CONFIG, class_map={"dog": 0})


def test_the_command_line(tmp_path: Path, run: Any, model_folder: Path) -> None:
    folder = class_folders(tmp_path / "set", classes=("b", "a"))
    (folder / ".cache").mkdir()
    file = tmp_path / "map.csv"
    file.write_text("a,3\nb,9\n")
    done = run("eval", model_folder, "--data", folder, "--class-map", file, "--json")
    assert done.code == 0
    result = json.loads(done.out)
    assert result["count"] == 6
    assert result["left_out"] == [{"name": ".cache", "why": "hidden"}]
    assert "left out of" in done.err
    assert "hidden: 1 (.cache)" in done.err
    done = run("eval", model_folder, "--data", folder, "--measure", "top1")
    assert done.code == 2
