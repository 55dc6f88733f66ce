"""Bad command lines, drawn with a seed from the options there are, and what is said of them.

`python -m tests.helpers.bad_inputs [COUNT] [SEED]` runs them in this process, in which torch can't
be imported: each must be refused with exit code 2, by one sentence that names the wrong value,
before torch is wanted. It prints how many of each kind held, and every one that did not.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import NamedTuple

from tpcli.cli import main as main_module

HEAVY = {"torch", "timm", "numpy", "pandas", "matplotlib", "fvcore", "accelerate"}
PARTED = ("METHOD", "SCHEDULE", "SHARES", "NAME=VALUE")
"""Kinds of value of which a part may be named alone."""
LONG = "x" * 5000
DEEP = "[" * 100_000
NUMBERS = ("", " ", "x", "nan", "inf", "-inf", "1e999", "-5", "1_0", "1,5", "0x10", "१२", "9" * 30)
BAD: dict[str, tuple[str, ...]] = {
    "N": (*NUMBERS, "1.5", "1e3", "9" * 5000, "10000000000"),
    "X": (*NUMBERS, "1e30", "0x1p3", "½"),
    "NAME": ("", " ", "x", "none?", "size,keys", "ADAMW", "\x1b[31mred", "a\nb", LONG),
    "METHOD": ("", "kmean", "ward,", ",", "ward:", "atc:linkage", "atc:linkage=x", "Ward",
        "tome:r=3",
               "dpc-knn:neighbours=0", "pitome:margin=nan", "random:seed=99999999999", "ward\n"),
    "SCHEDULE": ("", "half", "r:", "r:-3", "r:x", "flops:", "flops:0", "flops:1.5", "flops:nan",
        "keep:0.7",
                 "keep:0@3", "keep:0.5@x", "tokens:", "tokens:9,10", "tokens:9,x", "tokens:0",
                 "gone.json", "broken.json", "deep.json", "list.json", "folder.json", LONG),
    "DATA": ("", "gone", "gone/", "file.txt", "torch", "torch/", "a\x1b]0;b\x07", LONG, "cifar10"),
    "DEVICE": ("", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "meta", "CPU", "cuda:١"),
    "FILE": ("", "gone", "folder", LONG, "a\nb", "gone/file", "file.txt/x"),
    "FOLDER": ("", " ", LONG, "a" * 300),
    "PATH": ("", " ", LONG, "a" * 300),
    "SHARE": ("", "0", "-1", "2", "nan", "x", "1e999"),
    "SHARES": ("", "0.5,", "0", "2", "0.5,x", "0.5,nan", ",", "0.5;0.6"),
    "BLOCKS": ("", "x", "1,", "-1", "1.5", "1;2", "99999"),
    "SPLIT": ("", " ", "nonsense", "Validation\n"),
    "FORM": ("", "x", "rand-mx", "rand-m9-mx", "rand-", "rand-m9999", "augmix-n3", "v1", "RAND"),
    "NAME=VALUE": ("", "x", "=1", "1a=2", "a b=3", f"a={DEEP}", "-=1"),
    "MODEL": ("", "gone/", "a b", "file.txt", "folder", "hf-hub:", "hf-hub:x", "local-dir:gone",
        "é",
              "../x", "a\x07b", LONG),
    "bool": ("yes", "1", ""),
}  # fmt: skip
"""Values that no option of the kind accepts, by what stands for it in the help."""
LINES = (
    "flop", "Flops", "flops --nonsense", "eval --nonsense=3", "flops demo demo2", "methods x",
    "pareto demo demo", "flops --schedule", "bench --out x.xls", "pareto --out plot",
    "schedule --out s.txt",
    "export --out x.pt2", "export --format torch-export --opset 18", "export --out x.onnx.zip",
    "apply --out file.txt", "apply --out folder", "export --out folder.onnx",
    "eval deit_tiny_patch16_224", "show deit_tiny_patch16_224", "show --out x.gif",
    "show demo gone", "eval --blocks 3", "analyze vit_x", "analyze --split test",
    "pareto vit_x", "finetune vit_x", "schedule vit_x", "flops --method tome --start even",
    "flops --method top-k --weights size", "flops --start even", "flops --schedule method.json",
    "pareto --finetune-config recipe.toml", "eval --split test", "finetune --train-split nonsense",
    "pareto --finetune-epochs 1 --finetune-config broken.toml", "finetune --warmup-epochs 11",
    "eval --measure similarity --bank unpooled", "pareto --measure top1 --knn-images 9",
)  # fmt: skip
"""Whole lines: what options are not, or can't be together."""
TOML = (
    "inf",
    "nan",
    "-1",
    "'x'",
    "[1]",
    "{a = 1}",
    "true",
    "1.5",
    "''",
    "1e400",
    "10000000000000000000",
)


FITS = {
    ("X", "1.5"), (None, "true"), ("FOLDER", "'x'"), ("TEXT", "'x'"),
}  # fmt: skip
"""Values in TOML that some options take."""


class Wanted(BaseException):
    """Torch, or what imports it, was asked for."""


class Heavy(MetaPathFinder):
    """Lets nothing import what takes long."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in HEAVY:
            raise Wanted(name)


class Case(NamedTuple):
    """A command line, the value that is wrong in it, and what kind of wrong it is."""

    kind: str
    arguments: tuple[str, ...]
    value: str


def cases(folder: Path) -> Iterator[Case]:
    """Every case there is; `folder` is filled with the files that some of them need."""
    _fill(folder)
    group = main_module.program()
    for name, command in group.commands.items():
        for parameter in command.params:
            kind = parameter.metavar or ("bool" if getattr(parameter, "is_flag", False) else "")
            for value in BAD.get(kind, ()):
                if parameter.param_type_name == "argument":
                    yield Case(kind, (name, value), value)
                elif "--config" not in parameter.opts or kind != "FILE":
                    yield Case(kind, (name, f"{parameter.opts[0]}={value}"), value)
    for line in LINES:
        yield Case("line", tuple(line.split()), "")
    finetune = group.commands["finetune"]
    metavars = {p.name.replace("_", "-"): p.metavar for p in finetune.params}
    keys = [p.name.replace("_", "-") for p in finetune.params if p.name not in ("config", "model")]
    for key in [*keys, "nonsense", "lrr"]:
        metavar = metavars.get(key)
        for i, text in enumerate(TOML):
            if (metavar, text) in FITS:
                continue
            file = folder / f"{key}-{i}.toml"
            file.write_text(f"{key} = {text}\n")
            yield Case("TOML", ("finetune", "--config", file.name), f"{key}|{text}")


def _fill(folder: Path) -> None:
    (folder / "folder").mkdir()
    for name in ("folder.json", "folder.onnx"):
        (folder / name).mkdir()
    for name, text in {
        "file.txt": "",
        "broken.json": "{",
        "deep.json": DEEP,
        "list.json": "[1]",
        "method.json": '{"format": "tpcli-schedule/1", "tokens": [9], "method": {"method": "x"}}',
        "broken.toml": "epochs = ",
        "recipe.toml": "lr = 1.0\n",
    }.items():
        (folder / name).write_text(text)


def refused(case: Case) -> str:
    """What is wrong with how `case` was refused; nothing where all is well."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["tpcli", *case.arguments]
    code: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main_module.main()
    except SystemExit as stopped:
        code = stopped.code
    except Wanted as wanted:
        return f"wants {wanted}"
    said = err.getvalue()
    if code != 2:
        return f"exit {code}: {said}"
    if out.getvalue():
        return "prints on stdout"
    if not said.startswith("error: ") or said.count("\n") != 1 or "bug" in said:
        return f"not one sentence: {said}"
    if not said.rstrip().endswith((".", "?")):
        return f"no sentence: {said}"
    if not set(said[:-1]) <= {c for c in said if c.isprintable()}:
        return f"raw characters: {said!r}"
    return "" if _names(case, said) else f"does not name the value: {said}"


def _names(case: Case, said: str) -> bool:
    """Whether the wrong value is in the message, however it is quoted."""
    if case.kind == "TOML":
        return any(part.strip("'") in said for part in case.value.split("|"))
    if case.kind == "line":
        return any(word.strip("-").partition("=")[0] in said for word in case.arguments)
    last = re.split("[:=,@]", case.value)[-1] if case.kind in PARTED else case.value
    return any(_letters(form)[:40] in _letters(said) for form in (last, ascii(last)))


def _letters(text: str) -> str:
    return "".join(c for c in text if c.isalnum() and c.isascii())


def main(count: int = 400, seed: int = 0) -> int:
    """Run `count` cases; the number of those that were not refused as they should be."""
    sys.meta_path.insert(0, Heavy())
    held: Counter[str] = Counter()
    left: list[tuple[Case, str]] = []
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        every = list(cases(Path(name)))
        chosen = random.Random(seed).sample(every, min(count, len(every)))
        for case in chosen:
            wrong = refused(case)
            if wrong:
                left.append((case, wrong))
            else:
                held[case.kind] += 1
        os.chdir("/")
    print(f"{len(chosen)} of {len(every)} bad inputs, seed {seed}: {sum(held.values())} refused")
    for kind, number in sorted(held.items()):
        print(f"{kind:<12} {number:>4} held, {sum(c.kind == kind for c, _ in left)} left over")
    for case, wrong in left:
        print(f"LEFT {case.kind} {ascii(case.arguments)[:100]}: {ascii(wrong)[:200]}")
    return len(left)


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 100))
