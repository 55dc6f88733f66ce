"""`tpcli show`: draw clusters on images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpcli.config.choices import CLUSTER_STYLES, DEFAULT_SCHEDULE
from tpcli.config.outputs import FIGURE_KIND
from tpcli.config.specs import DEMO
from tpcli.errors import UserError
from tpcli.system.files import check_output

from . import render
from .field_options import (
    POOLING_PANEL,
    SCHEDULE_HELP,
    MethodGroup,
    PoolingGroup,
    method_names,
    some_methods,
)
from .groups import JsonOption, ModelArgument, ModelGroup
from .values import BLOCKS, FIGURE, FILE, SCHEDULE, blocks, choice, option

if TYPE_CHECKING:
    from torch import Tensor

    from tpcli.analysis.clusters import Guess, Seen
    from tpcli.models.load import LoadedModel

DEMO_IMAGES = 4


def show(
    model: ModelArgument = DEMO,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files.", metavar="IMAGE", parser=FILE.parse)
    ] = None,
    *,
    loading: ModelGroup,
    schedule: Annotated[
        str | None,
        option(
            SCHEDULE,
            SCHEDULE_HELP,
            panel=POOLING_PANEL,
            shown=f"the model's, or {DEFAULT_SCHEDULE}",
        ),
    ] = None,
    method: Annotated[list[str] | None, some_methods("One row each.", ["ward"])] = None,
    pooling: MethodGroup,
    block: Annotated[
        str | None,
        option(
            BLOCKS, "Blocks to show, such as 3,6,9.", "--blocks", shown="four of the pooled blocks"
        ),
    ] = None,
    style: Annotated[str, choice(CLUSTER_STYLES, "Style of the clusters")] = "mean",
    out: Annotated[Path, option(FIGURE, "Figure to write: .png, .svg or .pdf.")] = Path("show.png"),
    as_json: JsonOption = False,
) -> None:
    """Draw which patches of an image become one token, block by block, with the predictions.

    Examples:
        tpcli show deit_small_patch16_224 cat.jpg dog.jpg --schedule flops:0.6
        tpcli show pooled/ cat.jpg --method ward,tome --blocks 3,6,9 --out show.pdf
    """
    if not images and model != DEMO:
        raise UserError(
            f"model {model!r} needs images to show; add image files (only demo has its own)."
        )
    chosen: list[str | None] = [*method_names(method)]
    groups = [
        PoolingGroup(**vars(pooling), schedule=schedule, method=name) for name in chosen or [None]
    ]
    for group in groups:
        group.check(model)
    check_output(out, kind=FIGURE_KIND)
    for path in images or []:
        if out.exists() and out.samefile(path):
            raise UserError(f"--out {out} is an image to show; choose another --out.")

    from tpcli.analysis.clusters import look
    from tpcli.report import figure_bytes
    from tpcli.report.clusters import clusters_figure
    from tpcli.system.files import replacing

    loaded = loading.load(model)
    pixels, names = _images(loaded, images or [])
    knows = loading.pretrained or loading.checkpoint is not None
    rows = []
    for group in groups:
        group.apply_to(loaded, DEFAULT_SCHEDULE)
        asked = None if block is None else blocks(block)
        rows.append(look(loaded.model, pixels, loaded.data_config, names, asked, classes=knows))
    seen = [row for of_image in zip(*rows, strict=True) for row in of_image]
    title = f"{loaded.name}, schedule {seen[0].schedule}"
    if len(groups) == 1:
        title += f", {seen[0].method}"
    figure = clusters_figure(seen, title, style)
    with replacing(out) as fresh:
        fresh.write_bytes(figure_bytes(figure, out.suffix.lower()))
    if as_json:
        documents = [_document(row) for row in seen]
        render.print_json({"model": loaded.name, "out": str(out), "images": documents})
        return
    records = [
        {
            "image": row.name,
            "method": row.method,
            "tokens after blocks": ", ".join(f"{b.index}: {b.tokens}" for b in row.blocks),
            "without pooling": _best(row.base_top),
            "pooled": _best(row.pooled_top),
        }
        for row in seen
    ]
    render.print_records(title, records, spare=["tokens after blocks", "method"])
    render.say(f"written: {out}")


def _images(loaded: LoadedModel, paths: list[Path]) -> tuple[Tensor, list[str]]:
    """Images as the model gets them, and what they are called."""
    import torch

    from tpcli.analysis.clusters import read_images
    from tpcli.data import create

    if paths:
        return read_images(paths, loaded.data_config), [str(path) for path in paths]
    digits: Any = create(DEMO, loaded.data_config).images
    first: dict[int, Tensor] = {}
    for picture, digit in (digits[i] for i in range(len(digits))):
        first.setdefault(digit, torch.as_tensor(picture))
        if len(first) == DEMO_IMAGES:
            break
    return torch.stack(list(first.values())), [f"digit {digit}" for digit in first]


def _best(top: tuple[Guess, ...]) -> str:
    return f"{100 * top[0].probability:.0f}% {top[0].name}" if top else ""


def _document(row: Seen) -> dict[str, Any]:
    return {
        "path": row.name,
        "method": row.method,
        "schedule": row.schedule,
        "blocks": [{"index": b.index, "tokens": b.tokens} for b in row.blocks],
        "base_top": [vars(guess) for guess in row.base_top],
        "pooled_top": [vars(guess) for guess in row.pooled_top],
    }
