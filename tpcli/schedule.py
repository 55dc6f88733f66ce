"""Schedules: how many patch tokens leave each block; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpcli.errors import UserError
from tpcli.files import write_json

FORMAT = "tpcli-schedule/1"

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
        return Schedule(tuple(tokens), patch_tokens, options=self.options)

    @property
    def name(self) -> str:
        """The spec, or the tokens where there is none."""
        return self.spec or self.tokens_spec

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
            "format": FORMAT,
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
