"""`tpcli flops`: FLOPs of a model."""

from __future__ import annotations

from typing import Annotated

from tpcli.config.choices import FLOPS_TABLES

from . import render
from .field_options import PoolingGroup
from .groups import JsonOption, ModelArgument, ModelGroup
from .values import choice


def flops(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    by: Annotated[str, choice(FLOPS_TABLES, "Rows of the table")] = "block",
    as_json: JsonOption = False,
) -> None:
    """Count the FLOPs of a model with fvcore, pooling included and shown separately.

    The model is pooled only if it was saved so, or if a schedule or pooling option is given.

    Examples:
        tpcli flops deit_small_patch16_224 --no-pretrained --schedule flops:0.58
        tpcli flops pooled/ --by op
    """
    pooling.check(model)

    from tpcli.flops import CONVENTION, count_flops
    from tpcli.surgery import pooling_spec, unpooled

    loaded = loading.load(model)
    pooling.apply_to(loaded)
    spec = pooling_spec(loaded.model)
    count = count_flops(loaded.model)
    if spec:
        with unpooled(loaded.model):
            base = count_flops(loaded.model).total
    else:
        base = count.total
    pooled = render.how_pooled(spec)
    if as_json:
        render.print_json(
            {
                "model": loaded.name,
                **pooled,
                "flops": count.total,
                "pooling_flops": count.pooling,
                "base_flops": base,
                "ratio": count.total / base,
                "params": count.params,
                "convention": CONVENTION,
                "blocks": [vars(block) for block in count.blocks],
                "modules": count.by_module,
                "ops": count.by_op,
            }
        )
        return
    caption = (
        f"GFLOPs {render.gigas_of(count.total, base, '')}, "
        f"pooling {100 * count.pooling / count.total:.1f}%, "
        f"{count.params / 1e6:.2f} M parameters. {CONVENTION}."
    )
    rows: list[tuple[object, ...]]
    if by == "block":
        columns = ["block", "tokens in", "tokens out", "GFLOPs", "pooling"]
        rows = [
            (b.index, b.tokens_in, b.tokens_out, *map(render.gigas, (b.flops, b.pooling_flops)))
            for b in count.blocks
        ]
        rest = render.gigas(count.total - sum(b.flops for b in count.blocks))
        rows.append(("stem and head", "", "", rest, ""))
    else:
        columns = [by, "GFLOPs", "share"]
        rows = [
            (name or "(model)", render.gigas(f), f"{100 * f / count.total:.1f}%")
            for name, f in (count.by_module if by == "module" else count.by_op).items()
        ]
    title = f"{loaded.name}, schedule {pooled['schedule']}"
    render.print_table(title, columns, [list(map(str, row)) for row in rows], caption)
