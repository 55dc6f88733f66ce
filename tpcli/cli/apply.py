"""`tpcli apply`: pool a model and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tpcli.config.choices import DEFAULT_SCHEDULE
from tpcli.config.outputs import POOLED_MODEL_KIND
from tpcli.config.specs import base_name
from tpcli.system.files import check_output

from . import render
from .field_options import PoolingGroup
from .groups import ForceOption, JsonOption, ModelArgument, ModelGroup
from .values import FOLDER, option


def apply(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    out: Annotated[
        Path | None, option(FOLDER, "Folder to write the model to.", shown="MODEL-pooled")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pool a model and save it; plain timm loads the folder too, without pooling.

    Examples:
        tpcli apply deit_small_patch16_224 --schedule flops:0.6 --out pooled/
        tpcli apply mine/ --schedule searched.json --force
    """
    out = out or Path(f"{base_name(model)}-pooled")
    check_output(out, force, is_folder=True, kind=POOLED_MODEL_KIND)
    pooling.check(model)

    from tpcli.flops import count_flops
    from tpcli.models.save import save
    from tpcli.surgery import pooling_spec, unpooled

    loaded = loading.load(model)
    pooling.apply_to(loaded, default_schedule=DEFAULT_SCHEDULE)
    count = count_flops(loaded.model)
    with unpooled(loaded.model):
        base = count_flops(loaded.model).total
    save(loaded.model, out, force=force, made_on=list(loaded.made_on) or None)
    spec = pooling_spec(loaded.model)
    assert spec is not None
    result = {
        "model": loaded.name,
        "out": str(out),
        **render.how_pooled(spec),
        "flops": count.total,
        "base_flops": base,
        "ratio": count.total / base,
    }
    if as_json:
        render.print_json(result)
        return
    data = "demo" if model == "demo" else "DATA"
    render.print_facts(
        [
            *render.pooled_facts(loaded.name, spec),
            ("GFLOPs", render.gigas_of(count.total, base, f"; {render.CONVENTION}")),
            ("saved", f"{out}/  (try: {render.eval_command(out, data)})"),
        ]
    )
