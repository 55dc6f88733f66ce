"""Timm's architectures that can be pooled, with their facts, looked up without building them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from tpcli.errors import UserError, did_you_mean

FACTS = Path(__file__).with_name("architectures.json")
"""Facts of all architectures and the version of timm that has them, as `facts.py` printed them."""


@dataclass(frozen=True)
class Architecture:
    """One architecture at its own image size.

    patch_tokens, prefix_tokens: that enter block 0. flops: per image in closed form, one
    multiply-add each (within 1% of `count_flops`), None where that is not known.
    pretrained: whether timm has weights for it.
    """

    name: str
    model_class: str
    params: int
    image_size: tuple[int, int]
    blocks: int
    patch_tokens: int
    prefix_tokens: int
    flops: int | None
    pretrained: bool


def architectures(pattern: str = "") -> list[Architecture]:
    """The architectures whose names match: a part of the name, or a pattern with * and ?.

    With the version of timm that `FACTS` was made with, neither torch nor timm is imported. With
    another one, only architectures that `FACTS` does not have are built.

    Raises:
        UserError: none matches; says whether timm has such a model at all, and the nearest names.
    """
    stored = json.loads(FACTS.read_text(encoding="utf-8"))
    known = {fields["name"]: fields for fields in stored["architectures"]}
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    if version("timm") == stored["timm"]:
        found = [known[name] for name in sorted(known) if fnmatchcase(name, wanted)]
    else:
        from .facts import facts_of, names

        every = (known.get(n) or facts_of(n) for n in names() if fnmatchcase(n, wanted))
        found = [fields for fields in every if fields is not None]
    if not found:
        raise _no_match(pattern, wanted, known)
    return [Architecture(**{**f, "image_size": tuple(f["image_size"])}) for f in found]


def _no_match(pattern: str, wanted: str, known: Iterable[str]) -> UserError:
    import timm

    other = next((name for name in timm.list_models() if fnmatchcase(name, wanted)), None)
    reason = (
        f"matches no model of timm {timm.__version__}"
        if other is None
        else f"matches {other} and no Vision Transformer that can be pooled"
    )
    return UserError(f"filter {pattern!r} {reason}.{did_you_mean(pattern, known)}")
