"""`tpcli models`: list the models that can be pooled."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from . import render
from .groups import JsonOption


def models(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Part of a model name, or a pattern with * and ?.",
            metavar="FILTER",
            show_default=False,
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List the architectures of timm that can be pooled. No weights are built or fetched.

    Examples:
        tpcli models dinov3
        tpcli models 'deit*distilled*'
    """
    from tpcli.models.catalog import architectures

    render.quiet()
    found = architectures(pattern)
    if as_json:
        render.print_json([asdict(a) for a in found])
        return
    records = [
        {
            "model": a.name,
            "class": a.model_class,
            "params (M)": f"{a.params / 1e6:.1f}",
            "pixels": "x".join(map(str, dict.fromkeys(a.image_size))),
            "tokens": str(a.patch_tokens),
            "prefix": str(a.prefix_tokens),
            "GFLOPs": "" if a.flops is None else f"{a.flops / 1e9:.2f}",
            "weights": "yes" if a.pretrained else "",
        }
        for a in found
    ]
    caption = (
        f"{len(found)} architectures. Tokens: patch tokens at that image size, which pooling "
        f"removes; prefix: class, distillation and register tokens, which it keeps. "
        f"GFLOPs in closed form ({render.CONVENTION}); tpcli flops counts them."
    )
    spare = ["class", "weights", "prefix", "pixels", "params (M)", "tokens"]
    render.print_records("Models that can be pooled", records, caption, spare)
