"""What `analyze` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

KEEP = (7 / 8, 3 / 4, 1 / 2, 1 / 4)
STAGE_MEASURES = (
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


def verdict(found: Analysis) -> tuple[str, str, str]:
    """Whether attention smooths, where tokens are redundant, where pooling costs least."""
    return _smooths(found), _redundant(found), _cheapest(found)


def _smooths(found: Analysis) -> str:
    measure, what = "relative_log_amplitude", "the high frequencies"
    if found.no_spectrum:
        measure, what = "hf_lf_ratio", "what sets tokens apart from their mean"
    if not found.has("attention"):
        change = found.changes(measure, "input", "mlp")
        return (
            "Attention and MLP run side by side in this model, so they can't be told apart; "
            f"together they lower {what} in {_of(change, -1)} blocks."
        )
    attention = found.changes(measure, "input", "attention")
    mlp = found.changes(measure, "attention", "mlp")
    lowers, raises = _count(attention, -1), _count(mlp, 1)
    share = lowers / found.depth
    claim = (
        "so attention is a low-pass filter here"
        if share == 1
        else "so attention is a low-pass filter in most of its blocks"
        if share > 0.5
        else "so attention is no low-pass filter here"
    )
    return (
        f"Attention lowers {what} in {lowers} of {found.depth} blocks "
        f"({_mean(attention):+.3f} on average) and the MLP raises them in {raises} "
        f"({_mean(mlp):+.3f}), {claim}."
    )


def _redundant(found: Analysis) -> str:
    cosines = [found.at(i, "mlp").mean_cosine for i in range(found.depth)]
    ranks = [found.at(i, "mlp").effective_rank for i in range(found.depth)]
    alike, poor = cosines.index(max(cosines)), ranks.index(min(ranks))
    most = min(found.patches, found.channels)
    return (
        f"Tokens are most alike after block {alike} (mean cosine {cosines[alike]:.2f}) and span "
        f"the fewest directions after block {poor} (effective rank {ranks[poor]:.0f} of {most})."
    )


def _cheapest(found: Analysis) -> str:
    method = found.methods[0]
    halves = found.kept(method, 0.5)
    best, worst = halves.index(max(halves)), halves.index(min(halves))
    return (
        f"Pooling costs least in block {best}, where half of the tokens keep "
        f"{100 * halves[best]:.1f}% of the variance by {method}, and most in block {worst}, where "
        f"they keep {100 * halves[worst]:.1f}%."
    )


def _count(changes: list[float], sign: int) -> int:
    return sum(sign * change > 0 for change in changes)


def _of(changes: list[float], sign: int) -> str:
    return f"{_count(changes, sign)} of {len(changes)}"


def _mean(changes: list[float]) -> float:
    return sum(changes) / len(changes)
