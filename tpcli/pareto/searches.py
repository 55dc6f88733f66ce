"""One search for all budgets of a sweep, remembered and shared by the processes of one cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path

from tpcli.data import ImageData
from tpcli.errors import UserError
from tpcli.files import read_json, write_json
from tpcli.models import LoadedModel
from tpcli.options import PoolingOptions

from .cache import claimed

Found = dict[str, tuple[int, ...]]
"""Tokens per block for each budget, written as in the file."""


def searched(
    loaded: LoadedModel,
    calibration: ImageData,
    method: PoolingOptions,
    budgets: Sequence[float],
    path: Path,
    *,
    device: str = "auto",
    on_trial: Callable[[int, int], None] | None = None,
) -> Found:
    """Tokens per block for every budget: what `path` holds, or what a search finds, written to it.

    Raises:
        UserError: as `search`.
    """
    from tpcli.search import BUDGETS, SearchOptions, SearchResult, budgets_with, search

    depth = len(loaded.model.blocks)  # type: ignore[arg-type]
    found = stored(path, budgets, depth)
    if found is not None:
        return found
    with claimed(path, timeout=-1):  # processes that share the cache wait for one
        found = stored(path, budgets, depth)
        if found is not None:
            return found
        least = min(budgets)
        options = SearchOptions(
            budgets=budgets_with(least) if least < min(BUDGETS) else BUDGETS, device=device
        )
        if calibration.count is not None:
            options = replace(options, images=min(options.images, calibration.count))
        tokens: Found = {}

        def write(result: SearchResult) -> None:
            tokens.update({f"{b:g}": tuple(result.schedule(b).tokens) for b in budgets})
            write_json(path, {"made_by": result.made_by, "tokens": tokens})

        search(
            loaded.model,
            calibration,
            method,
            options,
            name=loaded.name,
            checkpoint=path.with_suffix(".part"),
            on_trial=on_trial,
            on_found=write,
        )
        return tokens


def stored(path: Path, budgets: Sequence[float], depth: int) -> Found | None:
    """Tokens of a search that was made before, where they are whole."""
    try:
        tokens = read_json(path)["tokens"]
        found = {f"{b:g}": tuple(index(t) for t in tokens[f"{b:g}"]) for b in budgets}
    except (UserError, KeyError, TypeError):
        return None
    return found if all(len(each) == depth for each in found.values()) else None
