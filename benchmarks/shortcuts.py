"""What the shortcuts of Ward's clustering cost in accuracy; prints Markdown.

    python benchmarks/shortcuts.py --model MODEL --data DATA --schedule r:4 tokens:53,44,...

The operator as it is against the one without its sketch (all distances, two rounds at least), under
the same tokens per block and on the same images. Differences are paired, with their 95% intervals.
"""

from __future__ import annotations

import argparse
from unittest import mock

from tpcli import data, pool
from tpcli.config.schedule import parse
from tpcli.evaluation.run import evaluate
from tpcli.models.load import load
from tpcli.pooling import ward
from tpcli.stats import drop
from tpcli.surgery.geometry import patch_tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--schedule", nargs="+", default=["r:4"], help="specs without a budget")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    images = data.create(arguments.data, loaded.data_config, limit=arguments.limit)
    model = loaded.model
    base = evaluate(model, images)
    patches, blocks = patch_tokens(model), len(model.blocks)  # type: ignore[arg-type]
    print(f"{base.count} images, unpooled top-1 {base.top1:.2f}%\n")
    print("| schedule | top-1 | without shortcuts | theirs is higher by |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    for spec in arguments.schedule:
        pool(model, list(parse(spec, patches, blocks).tokens), "ward")
        quick = evaluate(model, images)
        with (
            mock.patch.object(ward, "sketch_saves", return_value=False),
            mock.patch.object(ward, "SMALL_CUT", 0.0),
        ):
            whole = evaluate(model, images)
        change = drop(quick.correct, whole.correct).words
        print(f"| `{spec}` | {quick.top1:.2f} | {whole.top1:.2f} | {change} |", flush=True)


if __name__ == "__main__":
    main()
