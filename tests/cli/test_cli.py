"""The program from outside: exit codes, streams, JSON, help."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.cli import Run
from tests.helpers.images import CLASSES, class_folders, truncate
from tests.helpers.models import tiny_vit
from tpcli.cli import main as main_module
from tpcli.cli.verbosity import Visible
from tpcli.errors import UserError


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images", per_class=2, suffix="jpg")


# --- commands that do their work


def test_flops_json(run: Run, model_folder: Path) -> None:
    found = run("flops", model_folder, "--schedule", "r:10", "--json").document
    assert found["model"] == "mine"
    assert found["schedule"] == "r:10"
    assert found["tokens"] == [54, 44, 34, 24]
    assert found["ratio"] == pytest.approx(found["flops"] / found["base_flops"])
    assert 0 < found["ratio"] < 1
    assert found["params"] == sum(p.numel() for p in tiny_vit().parameters())
    assert "1 multiply-add = 1 FLOP" in found["convention"]
    assert [b["index"] for b in found["blocks"]] == [0, 1, 2, 3]
    assert [b["tokens_in"] for b in found["blocks"]] == [64, 54, 44, 34]
    assert [b["tokens_out"] for b in found["blocks"]] == [54, 44, 34, 24]
    for block in found["blocks"]:
        assert isinstance(block["flops"], int)
        assert isinstance(block["pooling_flops"], int)
        assert 0 < block["pooling_flops"] < block["flops"]
    assert isinstance(found["flops"], int)
    assert isinstance(found["base_flops"], int)


def test_flops_of_a_known_model(run: Run) -> None:
    found = run("flops", "deit_tiny_patch16_224", "--no-pretrained", "--json").document
    assert f"{found['flops']:.4e}" == "1.2584e+09"
    assert (found["model"], found["schedule"]) == ("deit_tiny_patch16_224", "none")
    assert found["ratio"] == 1


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("block", "stem and head"),
        ("module", "blocks.3.attn"),
        ("op", "scaled_dot_product_attention"),
    ],
)
def test_flops_tables(run: Run, model_folder: Path, by: str, words: str) -> None:
    found = run("flops", model_folder, "--schedule", "r:10", "--by", by)
    assert found.code == 0
    assert words in found.out
    assert "1 multiply-add = 1 FLOP" in " ".join(found.out.split())


def test_eval_json(run: Run, model_folder: Path, image_folder: Path) -> None:
    arguments = ("--data", image_folder, "--batch-size", 8, "--device", "cpu", "--workers", 0)
    found = run("eval", model_folder, *arguments, "--json").document
    assert (found["model"], found["data"]) == ("mine", str(image_folder))
    assert found["schedule"] == "none"
    assert found["count"] == 20
    assert 0 <= found["top1"] <= found["top5"] <= 100
    low, high = found["top1_ci95"]
    assert low <= found["top1"] <= high
    assert found["loss"] > 0
    assert found["images_per_second"] > 0
    assert found["unreadable"] == []
    limited = run("eval", model_folder, *arguments, "--limit", 7, "--json").document
    assert limited["count"] == 7


def test_eval_reports_what_could_not_be_read(
    run: Run, model_folder: Path, image_folder: Path
) -> None:
    truncate(image_folder / "class_2" / "1.jpg")
    arguments = ("--data", image_folder, "--device", "cpu", "--workers", 0)
    found = run("eval", model_folder, *arguments, "--json").document
    assert found["count"] == 19
    assert found["unreadable"] == ["class_2/1.jpg"]
    spoken = run("eval", model_folder, *arguments)
    assert spoken.code == 0
    assert re.search(r"unreadable +1 left out: class_2/1\.jpg", spoken.out)
    strict = run("eval", model_folder, *arguments, "--strict", "--json")
    assert (strict.code, strict.out) == (2, "")
    assert "class_2/1.jpg can't be read" in strict.err


def test_apply_json(run: Run, model_folder: Path, tmp_path: Path) -> None:
    found = run(
        "apply", model_folder, "--schedule", "r:10", "--method", "ward", "--out", "out", "--json"
    ).document
    assert (found["model"], found["out"], found["schedule"]) == ("mine", "out", "r:10")
    assert found["flops"] < found["base_flops"]
    assert found["ratio"] == pytest.approx(found["flops"] / found["base_flops"])
    assert sorted(os.listdir(tmp_path)) == ["out"]
    again = run("flops", "out", "--json").document
    assert again["flops"] == found["flops"]
    assert again["base_flops"] == found["base_flops"]
    assert again["method"]["method"] == "ward"


def test_apply_chooses_a_name_and_does_not_overwrite(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    arguments = ("apply", model_folder, "--schedule", "r:10")
    assert run(*arguments).code == 0
    config = tmp_path / "mine-pooled" / "config.json"
    before = config.read_bytes()
    refused = run("apply", model_folder, "--schedule", "r:5")
    assert refused.code == 2
    assert "mine-pooled exists already; choose another --out or add --force." in refused.err
    assert config.read_bytes() == before
    assert run("apply", model_folder, "--schedule", "r:5", "--force").code == 0
    assert config.read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["mine-pooled"]


@pytest.mark.long
def test_options_replace_those_of_a_pooled_folder_one_by_one(run: Run, pooled_folder: Path) -> None:
    own = run("flops", pooled_folder, "--json").document
    assert own["tokens"] == [54, 44, 34, 24]
    assert (own["method"]["method"], own["method"]["iterations"]) == ("ward", 4)
    keys = run("flops", pooled_folder, "--metric", "keys", "--json").document
    assert keys["method"] == {**own["method"], "metric": "keys"}
    assert keys["tokens"] == own["tokens"]
    fewer = run("flops", pooled_folder, "--schedule", "r:5", "--json").document
    assert fewer["method"] == own["method"]
    assert fewer["tokens"] == [59, 54, 49, 44]
    other = run("flops", pooled_folder, "--method", "k-means", "--json").document
    assert other["method"]["method"] == "k-means"
    assert other["tokens"] == own["tokens"]
    none = run("flops", pooled_folder, "--schedule", "none", "--json").document
    assert none["ratio"] == 1


@pytest.mark.long
@pytest.mark.parametrize("command", ["flops", "eval", "apply"])
def test_bare_commands_run_on_the_demo(run: Run, command: str, tmp_path: Path) -> None:
    few = ("--limit", "20", "--workers", "0") if command == "eval" else ()
    found = run(command, *few, "--json").document
    assert found["model"] == "demo"
    if command == "apply":
        assert found["out"] == "demo-pooled"
        assert found["ratio"] <= 0.6
        assert sorted(os.listdir(tmp_path)) == ["demo-pooled"]
    else:
        assert os.listdir(tmp_path) == []
    if command == "eval":
        assert found["top1"] > 80


# --- mistakes


MISTAKES = [
    ("flops deit_tiny_patch16_22", "Did you mean deit_tiny_patch16_224"),
    ("flops resnet18 --no-pretrained", "ResNet is no Vision Transformer"),
    ("flops MODEL --schedule half", "schedule 'half' is unknown; use flops:0.58"),
    ("flops MODEL --schedule tokens:9,10,3,2", "grows from 9 to 10 tokens at block 1"),
    ("flops MODEL --schedule tokens:9,8,7,6,5", "too long: it has 5 numbers"),
    ("flops MODEL --schedule tokens:9,8,7,0", "leaves 0 tokens after block 3"),
    ("flops MODEL --schedule tokens:9,8,x,6", "'x' in schedule"),
    ("flops MODEL --schedule flops:1.5", "budget 1.5 is out of range"),
    ("flops MODEL --schedule gone.json", "gone.json does not exist"),
    ("flops MODEL --schedule r:5 --method kmean", "method 'kmean' is unknown"),
    ("flops MODEL --schedule r:5 --metric key", "--metric 'key' is unknown"),
    ("flops MODEL --schedule r:5 --iterations -1", "--iterations '-1' is out of range"),
    ("flops MODEL --model-kwargs depth", "'depth' is not of the form name=value"),
    ("flops MODEL --checkpoint gone.pth", "'gone.pth' does not exist"),
    ("flops gone/", "'gone/' is unknown to timm"),
    ("eval MODEL", "needs data of its own; add --data"),
    ("eval MODEL --data gone", "data 'gone' does not exist"),
    ("eval MODEL --data EMPTY", "holds no images in class folders"),
    ("eval MODEL --data SEVEN --measure top1", "has 7 classes, the head of mine has 10"),
    ("eval MODEL --data SEVEN --device gpu", "--device 'gpu' is unknown"),
    ("eval MODEL --data SEVEN --limit 0", "--limit '0' is out of range"),
    ("eval MODEL --data SEVEN --measure agreement --bank pooled", "--bank pooled has no effect on"),
    ("eval MODEL --data SEVEN --measure knn", "no 'train' split of its own for --measure knn"),
    ("eval --num-classes 0 --measure top1", "use a model with classes, or --measure knn or --mea"),
    ("eval --split test", "data 'demo' has no 'test' split"),
    ("apply MODEL --out FILE/out", "is a file; choose another --out"),
    ("apply MODEL --schedule nonsense", "schedule 'nonsense' is unknown"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistakes_are_one_clear_sentence(
    run: Run, model_folder: Path, tmp_path: Path, line: str, message: str
) -> None:
    """Exit code 2, one line on stderr, nothing on stdout, nothing written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    class_folders(tmp_path / "seven", per_class=1, classes=CLASSES[:7])
    before = sorted(tmp_path.rglob("*"))
    places = {"MODEL": model_folder, "EMPTY": "empty", "SEVEN": "seven", "FILE/out": "file/out"}
    found = run(*(places.get(word, word) for word in line.split()))
    assert found.code == 2, found
    assert message in found.err
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert found.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("flop",),
        ("flops", "--nonsense"),
        ("flops", "--by", "colour"),
        ("eval", "--batch-size", "0"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    found = run(*arguments)
    assert found.code == 2
    assert found.out == ""
    assert "Traceback" not in found.err
    assert found.err


def test_out_of_memory_reaches_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path, image_folder: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("no")

    from timm.models import VisionTransformer

    monkeypatch.setattr(VisionTransformer, "forward", fail)
    found = run("eval", model_folder, "--data", image_folder, "--batch-size", 64, "--workers", 0)
    assert (found.code, found.out) == (2, "")
    assert "--batch-size 32" in found.err
    assert "bug" not in found.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ZeroDivisionError("oops"), 1, "error: ZeroDivisionError: oops (this is a bug; run again"),
    ],
)
def test_interrupts_and_bugs(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    model_folder: Path,
    image_folder: Path,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    from timm.models import VisionTransformer

    monkeypatch.setattr(VisionTransformer, "forward", fail)
    found = run("eval", model_folder, "--data", image_folder, "--workers", 0)
    assert (found.code, found.out) == (code, "")
    assert message in found.err
    assert "Traceback" not in found.err


# --- the program itself


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_a_traceback(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """In any position; what is raised here, Python prints with its traceback."""
    arguments = ["flops", "--schedule", "half"]
    arguments.insert(place, "--debug")
    monkeypatch.setattr(sys, "argv", ["tpcli", *arguments])
    with pytest.raises(UserError, match="schedule 'half' is unknown"):
        main_module.main()


LIGHT = """
import sys, tpcli
dir(tpcli)
from tpcli.cli.main import main
heavy = {"torch", "timm", "pandas", "matplotlib", "numpy", "fvcore", "jinja2"}
for line in ("--help", "eval --help", "--version", "methods", "flops --schedule half"):
    sys.argv = ["tpcli", *line.split()]
    try:
        main()
    except SystemExit as stopped:
        print(f"{line}: {stopped.code} {sorted(heavy & sys.modules.keys())}", file=sys.stderr)
"""


def test_what_needs_no_model_imports_nothing_heavy(tmp_path: Path) -> None:
    """And, in a process of its own, a mistake is one sentence and leaves nothing behind."""
    found = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *fine, mistake, last = found.stderr.splitlines()
    assert fine == [f"{line}: 0 []" for line in ("--help", "eval --help", "--version", "methods")]
    assert mistake.startswith("error: schedule 'half' is unknown")
    assert last == "flops --schedule half: 2 []"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("flops --method w", "wk-medoids ward"),
        ("eval --metric ", "tokens normalized keys"),
        ("apply --weights s", "size significance"),
        ("bench --start ", "top-k matching even ward"),
        ("pareto --reduce m", "mean max-norm medoid"),
        ("schedule --position ", "block attention"),
        ("finetune --opt adamw", "adamw adamwlegacy"),
        ("finetune --precision f", "fp16 fp32"),
        ("eval --device c", "cpu cuda"),
        ("bench --dtype b", "bfloat16"),
        ("export --format t", "torch-export"),
        ("eval --split va", "validation"),
        ("flops --by ", "block module op"),
        ("schedule --by ", "kl similarity reconstruction significance"),
        ("pareto --x t", "throughput"),
        ("flops deit3_hug", "deit3_huge_patch14_224"),
    ],
)
def test_the_shell_completes_values(
    run: Run, monkeypatch: pytest.MonkeyPatch, line: str, offered: str
) -> None:
    words = ["tpcli", *line.split()]
    for name in ("_tpcli_COMPLETE", "_TPCLI_COMPLETE"):  # click's spelling changed in 8.5
        monkeypatch.setenv(name, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - (not line.endswith(" "))))
    assert run().out.split() == offered.split()


def test_help_names_all_values(run: Run) -> None:
    """And an example, and no line that is broken where its source is."""
    from tpcli.config.methods import METHODS
    from tpcli.config.recipe import OPTIMIZERS

    said = run("finetune", "--help").out
    for name in (*METHODS, *OPTIMIZERS, "normalized", "attention", "medoid", "even", "bf16", "xpu"):
        assert re.search(rf"[\s(]{re.escape(name)}[\s,.:]", said), name
    assert "[[" not in said
    for name in main_module.COMMANDS:
        assert f"Examples:\n  tpcli {name}" in run(name, "--help").out


@pytest.mark.parametrize("line", ["-v methods", "methods -v", "methods --verbose"])
def test_verbose_says_what_the_library_logs(run: Run, line: str) -> None:
    logging.getLogger("tpcli").handlers.clear()
    assert run(*line.split()).code == 0
    assert logging.getLogger("tpcli").level == logging.DEBUG
    record = logging.LogRecord("tpcli", 10, "", 0, "loops\x1b[2J\n", None, None)
    assert Visible("%(message)s").format(record) == r"loops\x1b[2J\n"
    assert run("methods").code == 0
    assert logging.getLogger("tpcli").level == logging.WARNING


def test_quiet_leaves_errors_alone(run: Run, headless: Path, photos: Path) -> None:
    (photos / "notes.txt").touch()
    line = ("eval", headless, "--data", photos, "--workers", 0)
    assert "notes.txt" in run(*line).err
    for found in (run(*line, "-q"), run("--quiet", *line)):
        assert (found.code, found.err) == (0, "")
        assert "similarity" in found.out
    refused = run("flops", "--schedule", "half", "-q")
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_help_and_version(run: Run) -> None:
    import tpcli

    found = run("--help")
    assert found.code == 0
    for command in main_module.COMMANDS:
        assert command in found.out
        assert run(command, "--help").code == 0
    assert run("--version") == (0, f"tpcli {tpcli.__version__}\n", "")


def test_public_names_are_there() -> None:
    import tpcli

    for name in tpcli.__all__:
        assert getattr(tpcli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        _ = tpcli.prune
