"""Three sentences made from the numbers of an analysis."""

from __future__ import annotations

from .result import Analysis


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
