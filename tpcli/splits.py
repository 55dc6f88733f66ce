"""Splits of a data set: the names they go by, and where they are in a folder."""

from __future__ import annotations

from pathlib import Path

from tpcli.errors import UserError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "eval", "evaluation"),
    "test": ("test",),
}


def main_name(split: str) -> str:
    """The name that stands for all synonyms of a split."""
    return next((name for name, names in SPLITS.items() if split in names), split)


def synonyms(split: str) -> tuple[str, ...]:
    """The names a split goes by, the one asked for first."""
    group = SPLITS.get(main_name(split), ())
    return (split, *(name for name in group if name != split))


def find_split(folder: Path, split: str) -> Path:
    """The folder or .tar of `split` in `folder`; the folder itself where it has no splits.

    Raises:
        UserError: the folder has other splits, but not this one.
    """
    for name in synonyms(split):
        for candidate in (folder / name, folder / f"{name}.tar"):
            if candidate.exists():
                return candidate
    others = [
        entry.name
        for names in SPLITS.values()
        for name in names
        for entry in (folder / name, folder / f"{name}.tar")
        if entry.exists()
    ]
    if others:
        raise UserError(f"{folder} has no {split!r} split; it has {', '.join(others)}.")
    return folder
