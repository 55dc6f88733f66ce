"""Schedules: how many patch tokens leave each block; no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcli.errors import UserError
from tpcli.system.files import read_json, write_json

from .outputs import SCHEDULE_FORMAT

Tokens = tuple[int, ...]
"""Patch tokens that leave each block."""


def share_of(tokens: int, kept: int, of: int) -> int:
    """As large a share of `tokens` as `kept` is of `of`; at least 1."""
    return max(1, round(tokens * kept / of))


@dataclass(frozen=True)
class Budget:
    """What a `flops:` form asks for.

    share: of the base model's FLOPs, in (0, 1]. is_constant: the same number is removed at every
    block, where the default family removes a share that its profile gives. blocks: the only ones
    that remove tokens, None for all.
    """

    share: float
    is_constant: bool = False
    blocks: Tokens | None = None


@dataclass(frozen=True)
class Schedule:
    """Patch tokens that leave each block, `tokens[i]` for block i, out of `patch_tokens` at first.

    spec: what the user typed, or an equivalent `tokens:` form.
    options: how to pool, as a schedule file says it; None where nothing does.
    made_by: where a schedule file is from, empty otherwise.

    Raises:
        UserError: a number grows, or is below 1; names the block and the number.
    """

    tokens: Tokens
    patch_tokens: int
    spec: str = ""
    options: dict[str, object] | None = None
    made_by: dict[str, object] | None = None

    def __post_init__(self) -> None:
        before = self.patch_tokens
        for block, tokens in enumerate(self.tokens):
            if tokens < 1:
                raise UserError(
                    f"schedule {self.name!r} leaves {tokens} tokens after block {block}; "
                    "every block needs at least 1."
                )
            if tokens > before:
                raise UserError(
                    f"schedule {self.name!r} grows from {before} to {tokens} tokens at block "
                    f"{block}; a block can keep or remove tokens, never add any."
                )
            before = tokens

    def resized(self, patch_tokens: int) -> Schedule:
        """The same share of tokens at every block, for another image size."""
        if patch_tokens == self.patch_tokens:
            return self
        left, tokens = patch_tokens, []
        for before, after in zip((self.patch_tokens, *self.tokens), self.tokens, strict=False):
            left = left if after == before else share_of(left, after, before)
            tokens.append(left)
        return Schedule(tuple(tokens), patch_tokens, "", self.options, self.made_by)

    @property
    def name(self) -> str:
        """The spec, or the tokens where there is none."""
        return self.spec or self.tokens_spec

    @property
    def chosen_on(self) -> object:
        """The images that it was chosen on, as files remember them; None where unknown."""
        return (self.made_by or {}).get("chosen_on")

    @property
    def tokens_spec(self) -> str:
        """The `tokens:` form, which means the same on every model with as many blocks."""
        return "tokens:" + ",".join(map(str, self.tokens)) if self.pools else "none"

    @property
    def pools(self) -> bool:
        """Whether any token is removed at all."""
        return bool(self.tokens) and self.tokens[-1] < self.patch_tokens

    def tokens_in(self, block: int) -> int:
        """Patch tokens that enter `block`."""
        return self.patch_tokens if block == 0 else self.tokens[block - 1]

    def to_dict(self) -> dict[str, object]:
        """Plain values, as a schedule file holds them."""
        return {
            "format": SCHEDULE_FORMAT,
            "tokens": list(self.tokens),
            "method": self.options or {},
            "made_by": self.made_by or {},
        }

    def save(self, path: Path, force: bool = False) -> None:
        """Write the schedule as JSON, atomically."""
        write_json(path, self.to_dict(), force=force)


def constant_removal(patch_tokens: int, depth: int, total: int) -> Tokens:
    """Remove `total` tokens over `depth` blocks, evenly; never more than half of a block's tokens.

    The limit is ToMe's (Bolya et al., 2023), and keeps any r from emptying the last blocks.
    """
    cuts = [total * (i + 1) // depth - total * i // depth for i in range(depth)]
    return removed(patch_tokens, cuts)


def removed(patch_tokens: int, cuts: Sequence[int]) -> Tokens:
    """What is left where `cuts[i]` tokens go at block i, or half of them if that is less."""
    tokens, left = [], patch_tokens
    for cut in cuts:
        left -= min(cut, left // 2)
        tokens.append(left)
    return tuple(tokens)


MOST_TOKENS, MOST_BLOCKS = 10**6, 1000
"""Above what any model has."""
FORMS = (
    "flops:0.58, flops:0.58/constant, flops:0.58@3,6,9, r:13, r:13-0, keep:0.7@3,6,9, "
    "tokens:183,170,..., a .json file, or none"
)
CONSTANT = "/constant"


def parse(
    spec: str, patch_tokens: int, depth: int, solve: Callable[[Budget], Tokens] | None = None
) -> Schedule:
    """A schedule for a model with `patch_tokens` tokens and `depth` blocks from its written form.

    solve: turns what a `flops:` form asks for into tokens per block.

    Raises:
        UserError: the form is unknown, a number is none, or the result is not valid.
    """
    kind, _, rest = spec.partition(":")
    if spec == "none":
        tokens: Tokens = (patch_tokens,) * depth
    elif spec.endswith(".json"):
        return _from_file(Path(spec), patch_tokens, depth)
    elif kind == "flops" and rest:
        budget = _budget(spec, rest, depth)
        if solve is None:
            raise UserError(f"schedule {spec!r} needs a model to be solved for; load one first.")
        tokens = solve(budget)
    elif kind == "r" and rest:
        tokens = _removal(spec, rest, patch_tokens, depth)
    elif kind == "keep" and rest:
        tokens = _keep(spec, rest, patch_tokens, depth)
    elif kind == "tokens" and rest:
        tokens = tuple(_whole(spec, item, f"block {i}") for i, item in enumerate(rest.split(",")))
        _check_length(spec, tokens, depth)
    else:
        raise UserError(f"schedule {spec!r} is unknown; use {FORMS}.")
    return Schedule(tokens, patch_tokens, spec)


def check_form(spec: str) -> None:
    """Fail where `spec` is wrong whatever the model; a file is read.

    Raises:
        UserError: as `parse`, but for numbers that are right for some model.
    """
    depth = MOST_BLOCKS
    if spec.endswith(".json"):
        entries = _document(Path(spec)).get("tokens")
        depth = len(entries) if isinstance(entries, list) else 0
    elif spec.startswith("tokens:"):
        depth = spec.count(",") + 1
    parse(spec, MOST_TOKENS, depth, lambda budget: (1,) * depth)


def parse_budget(text: str, where: str = "") -> float:
    """A share of the base model's FLOPs in (0, 1].

    Raises:
        UserError: not a number, or out of range.
    """
    value = _number(where, text, "the budget")
    if not 0 < value <= 1:
        raise UserError(f"budget {text} is out of range; use a share of the FLOPs in (0, 1].")
    return value


def _budget(spec: str, text: str, depth: int) -> Budget:
    share, at, blocks = text.partition("@")
    is_constant = share.endswith(CONSTANT)
    if is_constant and at:
        raise UserError(
            f"schedule {spec!r} asks for constant removal and for some blocks only; use one."
        )
    return Budget(
        parse_budget(share.removesuffix(CONSTANT), spec),
        is_constant,
        _blocks(spec, blocks, depth) if at else None,
    )


def _removal(spec: str, text: str, patch_tokens: int, depth: int) -> Tokens:
    first_text, dash, last_text = text.partition("-")
    if not first_text:
        raise UserError(f"schedule {spec!r} is negative, so tokens would grow; remove 0 or more.")
    first = _number(spec, first_text, "the number removed")
    last = _number(spec, last_text, "the number removed at the end") if dash else first
    if max(first, last) > patch_tokens // 2:
        raise UserError(
            f"schedule {spec!r} removes more than half of the {patch_tokens} tokens at one block, "
            f"which would soon leave below 1; use at most {patch_tokens // 2}."
        )
    if not dash:
        return constant_removal(patch_tokens, depth, round(first * depth))
    steps = max(depth - 1, 1)
    return removed(patch_tokens, [round(first + (last - first) * i / steps) for i in range(depth)])


def _keep(spec: str, text: str, patch_tokens: int, depth: int) -> Tokens:
    rate_text, at, blocks_text = text.partition("@")
    if not at:
        raise UserError(f"schedule {spec!r} names no blocks; write it like keep:0.7@3,6,9.")
    rate = _number(spec, rate_text, "the keep rate")
    if not 0 < rate <= 1:
        raise UserError(f"schedule {spec!r} has a keep rate of {rate_text}; use one in (0, 1].")
    blocks = _blocks(spec, blocks_text, depth)
    tokens, left = [], patch_tokens
    for block in range(depth):
        if block in blocks:
            left = math.floor(left * rate + 1e-9)
        tokens.append(left)
    return tuple(tokens)


def _blocks(spec: str, text: str, depth: int) -> Tokens:
    blocks = tuple(_whole(spec, item, "a block") for item in text.split(","))
    for block in blocks:
        if not 0 <= block < depth:
            raise UserError(
                f"schedule {spec!r} names block {block}; the model has blocks 0 to {depth - 1}."
            )
    return blocks


def file_options(spec: object) -> dict[str, Any] | None:
    """The pooling options that a schedule file was made for; None where `spec` names no file.

    Raises:
        UserError: the file can't be read.
    """
    if not isinstance(spec, str) or not spec.endswith(".json"):
        return None
    return _document(Path(spec)).get("method") or None


def file_chosen_on(spec: str) -> object:
    """The images that a schedule file's schedule was chosen on; None where `spec` names no file."""
    if not spec.endswith(".json"):
        return None
    return (_document(Path(spec)).get("made_by") or {}).get("chosen_on")


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != SCHEDULE_FORMAT:
        raise UserError(f'{path} is no schedule file; it needs "format": "{SCHEDULE_FORMAT}".')
    for key in ("method", "made_by"):
        if not isinstance(document.get(key) or {}, dict):
            raise UserError(f'{path}: "{key}" is {document[key]!r}; it must be an object.')
    return document


def _from_file(path: Path, patch_tokens: int, depth: int) -> Schedule:
    document = _document(path)
    entries = document.get("tokens")
    if not isinstance(entries, list):
        raise UserError(f'{path} has no list "tokens"; it needs one number per block.')
    tokens = tuple(_whole(str(path), json.dumps(e), f"block {i}") for i, e in enumerate(entries))
    _check_length(str(path), tokens, depth)
    return Schedule(
        tokens,
        patch_tokens,
        str(path),
        document.get("method") or None,
        document.get("made_by") or None,
    )


def _check_length(spec: str, tokens: Sequence[int], depth: int) -> None:
    if len(tokens) != depth:
        long_or_short = "too long" if len(tokens) > depth else "too short"
        raise UserError(
            f"schedule {spec!r} is {long_or_short}: it has {len(tokens)} numbers, "
            f"the model has {depth} blocks."
        )


def _number(spec: str, text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        place = f" in schedule {spec!r}" if spec else ""
        raise UserError(f"{text!r}{place} is not a number; {what} must be one.")
    return value


def _whole(spec: str, text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{text!r} in schedule {spec!r} is not a whole number; {what} needs one."
        ) from None
