"""`tpcli eval`: evaluate a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from tpcli.config.measures import MEASURES
from tpcli.errors import UserError

from . import render
from .field_options import PoolingGroup
from .groups import (
    MEASURE_PANEL,
    DataGroup,
    JsonOption,
    MeasureGroup,
    ModelArgument,
    ModelGroup,
    RunGroup,
    TrainSplit,
)
from .values import BLOCKS, blocks, option

SHOWN = {
    "top5": ("top-5", "{:.2f}%"),
    "loss": ("loss", "{:.4f}"),
    "kl": ("KL", "{:.4f}  (mean divergence of class probabilities from the unpooled model's)"),
    "neighbours": ("neighbours", "{:.2f}%  (of the unpooled model's 10 nearest, found again)"),
}
"""What is printed beside the score: its name, and how it is written."""


def eval(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    source: DataGroup,
    train_split: TrainSplit = "train",
    measuring: MeasureGroup,
    block: Annotated[
        str | None,
        option(
            BLOCKS,
            "Blocks whose features dense compares, such as 3,6,9.",
            "--blocks",
            panel=MEASURE_PANEL,
            shown="four, with the last",
        ),
    ] = None,
    run: RunGroup,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model, with a 95% confidence interval.

    The model is pooled only if it was saved so, or if a schedule or pooling option is given. The
    measure is top-1 where the head and the labels match; else k-NN, or agreement with the model
    without pooling, which needs no labels (--measure).

    Examples:
        tpcli eval deit_small_patch16_224 --data imagenet/ --schedule flops:0.6
        tpcli eval vit_small_patch14_dinov2 --data imagenet/ --measure knn --schedule r:10
        tpcli eval pooled/ --data photos/ --limit 1000 --json
    """
    source.require_for(model, source.split, train_split)
    pooling.check(model)
    measuring.check()
    if block is not None and measuring.asked != "dense":
        raise UserError(f"--blocks {block} is for --measure dense; add that, or leave it out.")

    from tpcli.data import warnings
    from tpcli.evaluation.choose import MeasuredModel, choose
    from tpcli.evaluation.measurer import Measurer
    from tpcli.surgery import pooling_spec
    from tpcli.system.devices import pick_device

    device = pick_device(run.device)
    loaded = loading.load(model)
    pooling.apply_to(loaded)
    data = source.open(loaded)
    render.say_left_out(data)
    candidate = MeasuredModel(
        loaded.model, loaded.name, data, measuring.opener(source, loaded, train_split)
    )
    (task,) = choose(measuring.asked, [candidate], measuring.bank or "pooled")
    if block is not None:
        task = replace(task, blocks=tuple(blocks(block)))
    render.say_passed_over(task)
    options = run.options(device, sharded=True)
    with render.progress_bars(f"eval {loaded.name}") as begin:
        result = Measurer(loaded.model, task, options).measure(loaded.model, begin)
    spec = pooling_spec(loaded.model)
    caution = "; ".join(warnings([spec and spec.schedule.chosen_on, *loaded.made_on], data))
    pooled = render.how_pooled(spec)
    low, high = result.ci95
    bank = task.bank
    of_bank = {}
    if bank is not None:
        of_bank = {"bank": {"of": task.bank_of, "split": bank.split, "count": bank.count}}
    more: dict[str, Any] = dict(result.more)
    if "top1_lo" in more:
        more["top1_ci95"] = [more.pop("top1_lo"), more.pop("top1_hi")]
    if as_json:
        render.print_json(
            {
                "model": loaded.name,
                "data": data.spec,
                "split": data.split,
                **pooled,
                "count": result.count,
                "measure": result.measure,
                "score": result.score,
                "score_lo": low,
                "score_hi": high,
                "warning": caution or None,
                **more,
                "images_per_second": result.images_per_second,
                "unreadable": list(result.unreadable),
                "left_out": [entry._asdict() for entry in data.left_out],
                "device": str(device),
                "amp": run.amp,
                **of_bank,
            }
        )
        return
    facts = [
        ("model", loaded.name),
        ("schedule", pooled["schedule"]),
        ("data", f"{data.spec}, {data.split}, {result.count} images"),
        (
            MEASURES[result.measure].label,
            f"{result.score:.2f}%  (95% interval {low:.2f} to {high:.2f})",
        ),
        *(
            (SHOWN[name][0], SHOWN[name][1].format(v))
            for name, v in result.more.items()
            if name in SHOWN
        ),
        *(
            (name.replace("_", " "), f"{v:.2f}%")
            for name, v in result.more.items()
            if name.startswith("block_")
        ),
        ("images/s", f"{result.images_per_second:.0f}  (model alone, on {device})"),
    ]
    if bank is not None:
        whose = f"features of the {task.bank_of} model"
        facts.insert(3, ("bank", f"{bank.count} images of {bank.split}, {whose}"))
    if caution:
        facts.insert(4, ("warning", caution))
    if result.unreadable:
        facts.append(("unreadable", render.some(result.unreadable)))
    render.print_facts(facts)
