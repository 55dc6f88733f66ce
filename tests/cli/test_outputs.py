"""What a command may replace: outputs of its own kind, never a file of other origin."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.cli import Run
from tests.helpers.images import CLASSES, class_folders

SWEEP = "pareto MODEL --data DATA --method ward --schedule r:4 --cache cache"
RUN = "--workers 0 --device cpu --batch-size 16"
REPORT = ("plot.csv", "plot.json", "plot.md", "plot.html")
FILES = [
    *((f"{SWEEP} {RUN} --out plot.png", name) for name in ("plot.png", *REPORT)),
    (f"{SWEEP} {RUN} --out plot.pdf --style paper", "plot.tex"),
    *((f"analyze MODEL --data DATA {RUN} --out plot.svg", name) for name in ("plot.svg", *REPORT)),
    *(("bench MODEL --seconds 0 --out plot.png", name) for name in ("plot.png", "plot.csv")),
    ("show", "show.png"),
    ("show MODEL DATA/class_0/0.png --out plot.pdf", "plot.pdf"),
    ("schedule MODEL --data DATA --out plot.json", "plot.json"),
    ("schedule MODEL --data DATA --out plot.json --force", "plot.json"),
    ("export MODEL --out plot.onnx", "plot.onnx"),
    ("export MODEL --out plot.onnx --force", "plot.onnx"),
    ("export MODEL --out plot.pt2 --format torch-export --force", "plot.pt2"),
]
"""Commands, and what they would write."""


def words(line: str, model: Path) -> list[str]:
    """The words of a command line, with the model in its place."""
    return [
        str(model) if word == "MODEL" else word.replace("DATA", "images") for word in line.split()
    ]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images", classes=CLASSES, per_class=2)


def foreign(path: Path) -> bytes:
    """Put a file of other origin there: a picture, a drawing, a table, ..."""
    if path.suffix == ".png":
        Image.new("RGB", (8, 8), "red").save(path)
    elif path.suffix == ".json":
        path.write_text('{"name": "package", "format": "mine/1", "verdict": 1, "made_by": {}}')
    else:
        path.write_bytes(b"<svg/>,mine\n\x00")
    return path.read_bytes()


@pytest.mark.parametrize(("line", "name"), FILES, ids=lambda value: value[:60])
def test_a_file_of_other_origin_is_kept(
    run: Run, images: Path, model_folder: Path, tmp_path: Path, line: str, name: str
) -> None:
    before = foreign(tmp_path / name)
    found = run(*words(line, model_folder))
    assert (found.code, found.out) == (2, "")
    assert name in found.err
    assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["images", name])


FOLDERS = [
    ("apply MODEL", "config.json model.safetensors"),
    ("apply MODEL", "config.json model.safetensors notes.txt"),
    ("optimize MODEL --data DATA", "config.json report.html"),
    ("optimize MODEL --data DATA", "config.json model.safetensors optimize.json report.html"),
    ("finetune", "run.json config.json"),
    ("finetune", "photo.png"),
]


@pytest.mark.parametrize("more", ["", "--force"])
@pytest.mark.parametrize(("line", "names"), FOLDERS)
def test_a_folder_of_other_origin_is_kept(
    run: Run, images: Path, model_folder: Path, tmp_path: Path, line: str, names: str, more: str
) -> None:
    (tmp_path / "mine").mkdir()
    before = {name: foreign(tmp_path / "mine" / name) for name in names.split()}
    if "optimize.json" in names:
        (tmp_path / "mine" / "optimize.json").write_text("[]")
        before["optimize.json"] = b"[]"
    found = run(*words(f"{line} --out mine {more}", model_folder))
    assert found.code == 2
    assert "mine" in found.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


@pytest.mark.parametrize(
    ("line", "again"),
    [
        ("bench MODEL --seconds 0 --schedule r:4 --out plot.svg", ""),
        ("apply MODEL --out plot", "--force"),
        *(
            pytest.param(line, again, marks=pytest.mark.long)
            for line, again in (
                (f"{SWEEP} {RUN} --out plot.png", ""),
                ("show MODEL images/class_0/0.png --out plot.pdf", ""),
                ("schedule MODEL --data DATA --trials 1 --images 4 --out plot.json", "--force"),
                (f"analyze MODEL --data DATA {RUN} --out plot.png", ""),
                ("export MODEL --out plot.pt2 --format torch-export", "--force"),
                ("export MODEL --out plot.onnx", "--force"),
            )
        ),
    ],
)
def test_an_output_is_replaced_by_its_own_kind(
    run: Run, images: Path, model_folder: Path, tmp_path: Path, line: str, again: str
) -> None:
    """The empty file that a shell makes for `> plot.json` is nobody's either."""
    name = line.split("--out ")[1].split()[0]
    for beside in {name, "plot.json"} if "pareto" in line else {name} - {"plot"}:
        (tmp_path / beside).touch()
    arguments = words(line, model_folder)
    for more in ("", again):
        found = run(*arguments, *more.split())
        assert found.code == 0, found.err
    if again:
        assert run(*arguments).code == 2


@pytest.mark.parametrize("link", [False, True])
def test_show_never_replaces_the_image_that_it_shows(
    run: Run, images: Path, model_folder: Path, tmp_path: Path, link: bool
) -> None:
    """Not even a figure of our own, nor through a link."""
    assert run("show", model_folder, "images/class_0/0.png", "--out", "own.png").code == 0
    before = (tmp_path / "own.png").read_bytes()
    out = tmp_path / "link.png" if link else tmp_path / "own.png"
    if link:
        out.symlink_to("own.png")
    found = run("show", model_folder, "own.png", "--out", out.name)
    assert found.code == 2
    assert out.name in found.err
    assert (tmp_path / "own.png").read_bytes() == before
