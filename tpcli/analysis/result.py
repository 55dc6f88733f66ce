"""What `analyze` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KEEP = (7 / 8, 3 / 4, 1 / 2, 1 / 4)
MEASURES = (
    "relative_log_amplitude",
    "hf_lf_ratio",
    "residual",
    "effective_rank",
    "mean_cosine",
    "nearest_distance",
    "rank_consistency",
)


@dataclass(frozen=True)
class Stage:
    """Means over images at one place in one block.

    stage: input, attention or mlp. relative_log_amplitude: of the highest frequency, None without a
    grid. spectrum: the same from frequency 0 to the highest. rank_consistency: with the tokens that
    entered the block, None for those themselves. The rest: see the functions of these
    names.
    """

    index: int
    stage: str
    relative_log_amplitude: float | None
    hf_lf_ratio: float
    residual: float
    effective_rank: float
    mean_cosine: float
    nearest_distance: float
    rank_consistency: float | None
    spectrum: tuple[float, ...] = ()


@dataclass(frozen=True)
class Kept:
    """The share of variance, in [0, 1], that a share `keep` of the tokens keeps.

    tokens: that share as a number, which is the next possible one where a method can't make it.
    """

    index: int
    method: str
    keep: float
    tokens: int
    kept_variance: float


@dataclass(frozen=True)
class Analysis:
    """A model's tokens, block by block.

    count: images. patches, channels: of a token grid. no_spectrum: why there are no spectra, or
    empty. unreadable: names of images that could not be read.
    """

    count: int
    patches: int
    channels: int
    blocks: tuple[Stage, ...]
    redundancy: tuple[Kept, ...]
    no_spectrum: str = ""
    unreadable: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(stage.index for stage in self.blocks)

    @property
    def methods(self) -> list[str]:
        """Of the redundancy, in the order asked for."""
        return list(dict.fromkeys(kept.method for kept in self.redundancy))

    def at(self, index: int, stage: str) -> Stage:
        """The measures of one place."""
        return next(s for s in self.blocks if s.index == index and s.stage == stage)

    def has(self, stage: str) -> bool:
        """Whether every block has that stage."""
        return sum(s.stage == stage for s in self.blocks) == self.depth

    def kept(self, method: str, keep: float) -> list[float]:
        """Kept variance block by block."""
        found = [k for k in self.redundancy if k.method == method and k.keep == keep]
        return [k.kept_variance for k in sorted(found, key=lambda k: k.index)]

    def changes(self, measure: str, before: str, after: str) -> list[float]:
        """What a measure gains from one stage of a block to another, block by block."""
        return [
            getattr(self.at(i, after), measure) - getattr(self.at(i, before), measure)
            for i in range(self.depth)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
