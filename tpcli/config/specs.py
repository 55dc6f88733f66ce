"""What MODEL, DATA and `name=value` say on their face; imports neither torch nor timm."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tpcli.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_WORDS = "|".join(sorted((w for names in SPLITS.values() for w in names), key=len, reverse=True))
_NAME = re.compile(
    rf"(?:(?P<front>.+)[-_. ])?(?P<word>{_WORDS})(?:[-_. ]?(?:set|data|dataset|split|images?|\d+))*"
)
"""`val`, `training`, `test_set`, `val2017`, `train_images`; and `ilsvrc2012_img_val`."""
_ENDS_WITH_SPLIT = re.compile(rf"(?:.*[-_. ])?(?:{_WORDS})")


def main_name(split: str) -> str:
    """The name that stands for all synonyms of a split, in any capitals."""
    return next((name for name, names in SPLITS.items() if split.lower() in names), split)


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Those of `names` that name a split, with the split's main name.

    What stands before the word counts only where several splits share it: `img_train` beside
    `img_val` are splits, `test_tube` and `bullet_train` are none; nor is `train_val`.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        parts = _NAME.fullmatch(name.lower())
        if parts and not _ENDS_WITH_SPLIT.fullmatch(parts["front"] or ""):
            found[name] = (parts["front"] or "", main_name(parts["word"]))
    pairs = set(found.values())
    return {
        name: main
        for name, (front, main) in found.items()
        if not front or len([pair for pair in pairs if pair[0] == front]) > 1
    }


DEMO = "demo"
HUB = ("hf-hub:", "hf_hub:")
LOCAL = "local-dir:"
NAMED = ("torch", "hfds", "hfids", "wds", "tfds")
"""What names of data sets that timm opens begin with, before a slash."""


def expanded(spec: str) -> str:
    """`spec` with the home folder for a ~ at its beginning, also behind `local-dir:`."""
    front = LOCAL if spec.startswith(LOCAL) else ""
    return front + os.path.expanduser(spec.removeprefix(front))


def check_model(spec: str) -> None:
    """Fail where `spec` can be no model, before timm is asked.

    Raises:
        UserError: it is empty, a file, a folder without config.json, or no name at all.
    """
    if spec == DEMO:
        return
    if spec.startswith(HUB):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", spec[len(HUB[0]) :], re.ASCII):
            raise UserError(f"model {spec!r} names none on the hub; write it hf-hub:org/name.")
        return
    path = spec.removeprefix(LOCAL)
    if os.path.isdir(path) or spec.startswith(LOCAL):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise UserError(f"model {spec!r} is no model folder: it has no config.json.")
    elif os.path.exists(path):
        raise UserError(
            f"model {spec!r} is a file; give a folder with config.json, or an architecture and "
            "the file as its `checkpoint`."
        )
    elif not re.fullmatch(r"[\w.-]{1,200}", spec, re.ASCII):
        raise UserError(
            f"model {spec!r} is unknown to timm, and no such folder exists; give a name that timm "
            "has, hf-hub:org/name, or a folder with config.json."
        )


def is_plain(spec: str) -> bool:
    """Whether the model has no pooling of its own, for it is neither a folder nor on the hub."""
    return spec == DEMO or not (spec.startswith(HUB) or os.path.isdir(spec.removeprefix(LOCAL)))


def base_name(spec: str) -> str:
    """A name for files made from `spec`: the last part of a folder or hub name."""
    return Path(display_name(spec).split(":")[-1]).name


def display_name(spec: str) -> str:
    """The name that a model goes by: its folder's, or what was typed."""
    path = spec.removeprefix(LOCAL)
    return Path(path).resolve().name if spec != DEMO and os.path.isdir(path) else spec


def is_named(spec: str) -> bool:
    """Whether `spec` is the name of a data set that timm opens, such as torch/cifar10."""
    kind, slash, name = spec.partition("/")
    return kind in NAMED and bool(slash and name) and not os.path.exists(spec)


def check_data(spec: str) -> None:
    """Fail where there can be no data, before a model is loaded for it.

    Raises:
        UserError: nothing is there, or a file that is no .tar.
    """
    if spec == DEMO or is_named(spec):
        return
    if not os.path.exists(spec):
        raise UserError(
            f"data {spec!r} does not exist; give a folder of class folders, of images, of "
            "splits or of <split>.tar files, a .tar file, or a timm data set such as "
            "torch/cifar10."
        )
    if not os.path.isdir(spec) and not spec.lower().endswith(".tar"):
        raise UserError(f"data {spec!r} is a file but no .tar; give a folder or a .tar file.")


def check_split(spec: str, split: str) -> None:
    """Fail where `spec` can't have a split of that name.

    Raises:
        UserError: it is no split that folders have, and none of the demo's.
    """
    if is_named(spec):
        return
    places = (os.path.join(spec, split), os.path.join(spec, f"{split}.tar"))
    if spec != DEMO and (splits_among([split]) or any(map(os.path.exists, places))):
        return
    known = [name for name in SPLITS if spec != DEMO or name != "test"]
    if main_name(split) not in known:
        raise UserError(f"data {spec!r} has no {split!r} split; use one of {', '.join(known)}.")


def parse_model_kwargs(items: Sequence[str]) -> dict[str, Any]:
    """`name=value` items to keyword arguments; values are Python literals, else strings.

    Raises:
        UserError: an item has no `=`, or no name before it.
    """
    values: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"model argument {item!r} is not of the form name=value.")
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            if text.startswith(("(", "[", "{")):
                raise UserError(
                    f"model argument {item[:60]!r} has a bracket that Python can't read; close it, "
                    "or give a plain value."
                ) from None
            values[key] = text
    return values
