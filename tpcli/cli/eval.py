"""`tpcli eval`: accuracy of a model."""

from __future__ import annotations

import typer

from tpcli.cli.groups import DataGroup, JsonOption, ModelArgument, ModelGroup, RunGroup
from tpcli.cli.pooling_options import PoolingGroup
from tpcli.cli.spread import add


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, "eval", evaluate)


def evaluate(
    model: ModelArgument = "demo",
    *,
    loading: ModelGroup,
    pooling: PoolingGroup,
    source: DataGroup,
    run: RunGroup,
    as_json: JsonOption = False,
) -> None:
    """Measure top-1, top-5 and loss, with a 95% interval. Pools only where asked to.

    Example: tpcli eval deit_small_patch16_224 --data imagenet/ --schedule flops:0.6
    """
    source.require_for(model, source.split)
    pooling.check(model)

    from tpcli import evaluation
    from tpcli.cli import render
    from tpcli.devices import pick_device
    from tpcli.surgery import pooling_spec

    render.quiet()
    device = pick_device(run.device)
    loaded = loading.load(model)
    pooling.apply_to(loaded)
    data = source.open(loaded)
    render.say_left_out(data)
    with render.progress_bar(f"eval {loaded.name}", data.count) as advance:
        result = evaluation.evaluate(
            loaded.model,
            data,
            batch_size=run.batch_size,
            device=device,
            amp=run.amp,
            workers=run.workers,
            strict=run.strict,
            on_batch=advance,
        )
    spec = pooling_spec(loaded.model)
    schedule = spec.schedule.name if spec else "none"
    if as_json:
        render.print_json(
            {
                "model": loaded.name,
                "data": data.spec,
                "split": data.split,
                "schedule": schedule,
                "tokens": list(spec.schedule.tokens) if spec else [],
                "method": spec.options.to_dict() if spec else {},
                "count": result.count,
                "top1": result.top1,
                "top5": result.top5,
                "loss": result.loss,
                "top1_ci95": list(result.top1_ci95),
                "images_per_second": result.images_per_second,
                "unreadable": list(result.unreadable),
                "left_out": [entry._asdict() for entry in data.left_out],
                "device": str(device),
                "amp": run.amp,
            }
        )
        return
    low, high = result.top1_ci95
    facts = [
        ("model", loaded.name),
        ("schedule", schedule),
        ("data", f"{data.spec}, {data.split}, {result.count} images"),
        ("top-1", f"{result.top1:.2f}%  (95% interval {low:.2f} to {high:.2f})"),
        ("top-5", f"{result.top5:.2f}%"),
        ("loss", f"{result.loss:.4f}"),
        ("images/s", f"{result.images_per_second:.0f}  (model alone, on {device})"),
    ]
    if result.unreadable:
        facts.append(("unreadable", render.some(result.unreadable)))
    render.print_facts(facts)
