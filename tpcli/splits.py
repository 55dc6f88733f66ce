"""Splits of a data set: the names that they go by."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
