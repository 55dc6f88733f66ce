"""Run the commands in README and docs: `python docs/check.py [PAGE...]`.

Blocks marked ```console are run as they stand, on the demo, and must print what the page shows.
Values of lines and columns that the comment before a block names (<!-- varies: images/s -->) may
differ. All other `tpcli` commands run on stand-ins: a small model for every name, few images for
every data set.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

os.environ |= {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MODELS = "mine pooled tuned small-58 my-finetuned MODEL W96 W128 W192 DEIT_TINY OUT vit".split()
MODELS += ["dinov2_s14"]
DATA = "imagenet DATA fashion cifar10 flowers scenes".split()
IMAGES = "cat.jpg dog.jpg sea.jpg street.jpg".split()
DROPPED = {"--device": 1, "--img-size": 1, "--model-kwargs": 1, "--no-pretrained": 0}
"""Options that mean nothing for a stand-in, with their number of values."""

SMALL = {
    "bench": ("--seconds", "0.2"),
    "finetune": ("--epochs", "1", "--workers", "0", "--batch-size", "8"),
    "schedule": ("--images", "8", "--trials", "2"),
    "analyze": ("--limit", "8"),
}
"""Options that make a command short."""


class Shown(NamedTuple):
    """A command of a console block, and what the page says it prints."""

    page: Path
    command: str
    output: str
    varies: tuple[str, ...]


def commands(text: str) -> Iterator[str]:
    """Each `tpcli` command in code blocks that show no output."""
    text = re.sub(r"^```console\n.*?^```", "", text, flags=re.M | re.S)
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = re.match(r"\s*(?:(?:torchrun|accelerate|srun) .*-m )?(tpcli [a-z].*)", line)
            if found:
                yield found[1]


def shown(page: Path) -> Iterator[Shown]:
    pattern = r"(?:<!-- varies: ([^>]*?) -->\n)?```console\n(.*?)^```"
    for varies, block in re.findall(pattern, page.read_text(encoding="utf-8"), re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            yield Shown(page, command, output.strip("\n"), tuple(filter(None, varies.split(", "))))


def run(command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process and folder."""
    from tpcli.cli.main import main

    sys.argv = shlex.split(command, comments=True)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            return int(stopped.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def differences(expected: str, printed: str, varies: tuple[str, ...]) -> Iterator[str]:
    """Lines that differ in more than values that may vary."""
    columns: list[int] = []
    wanted = [line.rstrip() for line in expected.splitlines()]
    got = [line.rstrip() for line in printed.strip("\n").splitlines()]
    if len(wanted) != len(got):
        yield f"{len(wanted)} lines are shown, {len(got)} are printed:\n{printed}"
        return
    for one, other in zip(wanted, got, strict=True):
        columns += [found.end() for name in varies for found in re.finditer(re.escape(name), one)]
        if one.startswith(varies) if varies else False:
            continue
        spans = list(re.finditer(r"\S+", one)), list(re.finditer(r"\S+", other))
        same = len(spans[0]) == len(spans[1]) and all(
            a[0] == b[0] or any(abs(a.end() - end) <= 1 for end in columns)
            for a, b in zip(*spans, strict=True)
        )
        if not same:
            yield f"shown:   {one}\nprinted: {other}"


def stand_ins(folder: Path) -> None:
    """Small models, data, images and files under the names that the pages use."""
    import timm
    from PIL import Image

    import tpcli
    from tpcli.demo import Digits

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, depth=12, embed_dim=32, num_heads=2,
        num_classes=10,
    )  # fmt: skip
    for name in MODELS:
        if name in ("pooled", "tuned", "small-58", "my-finetuned"):
            tpcli.pool(model, "flops:0.6")
        tpcli.save(model, folder / name)
        tpcli.unpool(model)
    for split, count in (("train", 60), ("validation", 40)):
        for index, (image, label) in zip(range(count), Digits(split), strict=False):
            for data in DATA:
                place = folder / data / split / str(label)
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{index}.png")
    (folder / "photos").mkdir()
    for index, (image, _) in zip(range(40), Digits("validation"), strict=False):
        image.save(folder / "photos" / f"{index}.png")
    for name in IMAGES:
        Image.new("RGB", (64, 48), (90, 120, 30)).save(folder / name)
    with tarfile.open(folder / "test.tar", "w") as tar:
        tar.add(folder / "imagenet" / "validation", ".")
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos", ".")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "recipe.toml").write_text('batch-size = 8\nprecision = "fp32"\n')
    tokens = ", ".join(str(60 - 4 * block) for block in range(12))
    for name in ("schedule.json", "searched.json", "mine.json"):
        (folder / name).write_text(f'{{"format": "tpcli-schedule/1", "tokens": [{tokens}]}}')


def standing_in(command: str) -> list[str]:
    """The command's words, with stand-ins for models and images and as little work as it takes."""
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    if "--no-pretrained" in words and words[1] == "flops":
        return words
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word in DROPPED:
            del words[: DROPPED[word]]
        elif word == "--num-classes" and words[0] != "0":
            words.pop(0)
        elif re.match(r"(deit|vit)_\w+|hf-hub:", word) and kept[-1] != "models":
            kept.append("mine")
        else:
            kept.append(word)
    if kept[1] == "pareto":  # one point of one method
        for option, value in (("--method", "ward"), ("--budget", "0.6")):
            if option in kept:
                kept[kept.index(option) + 1] = value
            elif "--schedule" not in kept or option == "--method":
                kept += [option, value]
    return [*kept, *SMALL.get(kept[1], ())]


def check(folder: Path, pages: list[Path]) -> list[str]:
    """Everything that is wrong, in words."""
    wrong, done = [], set()
    for page in pages:
        name = str(page.relative_to(ROOT))
        work = folder / name.replace("/", "-")
        work.mkdir()
        os.chdir(work)
        for case in shown(page):
            code, out, err = run(case.command)
            printed = out if code == 0 else err
            for text in differences(case.output, printed, case.varies):
                wrong.append(f"{name}: {case.command}\n{text}")
        for command in commands(page.read_text(encoding="utf-8")):
            words = standing_in(command)
            if tuple(words) in done or words[1] in ("optimize", "export") or "--runtime" in words:
                continue
            done.add(tuple(words))
            place = Path(tempfile.mkdtemp(dir=folder))
            outputs = {words[at + 1].strip("/") for at, word in enumerate(words) if word == "--out"}
            for source in (folder / "stand-ins").iterdir():
                if source.name not in outputs:
                    (place / source.name).symlink_to(source)
            os.chdir(place)
            start = time.monotonic()
            code, _, err = run(shlex.join(words))
            print(f"{time.monotonic() - start:5.1f} s  {name}: {shlex.join(words)}", flush=True)
            if code:
                wrong.append(f"{name}: {command}\nas {shlex.join(words)}\n{code}: {err[-600:]}")
    return wrong


if __name__ == "__main__":
    chosen = [Path(page).resolve() for page in sys.argv[1:]] or PAGES
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        (Path(temporary) / "stand-ins").mkdir()
        stand_ins(Path(temporary) / "stand-ins")
        found = check(Path(temporary), chosen)
        os.chdir(ROOT)
    print(*found, sep="\n\n")
    sys.exit(f"{len(found)} commands do not print what is shown" if found else 0)
