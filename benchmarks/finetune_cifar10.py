"""Accuracy / GFLOPs of one model: base, off the shelf and fine-tuned, under several schedules.

    python benchmarks/finetune_cifar10.py --model MODEL_DIR --data DATA_DIR --out OUT_DIR --epochs 3

One `tpcli finetune` per row, in OUT_DIR/base and in one folder per schedule (specs, or files as
`tpcli schedule` writes them). Rows that are complete are not repeated and one that was killed goes
on, so the same command can be started again at any time. Writes OUT_DIR/table.md and
OUT_DIR/table.json after every row. What follows `--` goes to each `tpcli finetune`, e.g.
`-- --limit 10000 --lr 2e-5`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tpcli.files import write_json, write_text


def main() -> None:
    """Run all rows and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder or name")
    parser.add_argument("--data", required=True, help="folder with train and validation")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--schedules", nargs="*", default=["flops:0.58", "flops:0.4", "flops:0.3"])
    ours, theirs = _split(sys.argv[1:])
    arguments = parser.parse_args(ours)
    rows: list[dict[str, Any]] = []
    for schedule in ["none", *arguments.schedules]:
        name = Path(schedule).name.removesuffix(".json").replace(":", "-")
        folder = arguments.out / ("base" if schedule == "none" else name)
        rows.append(_finetune(arguments, schedule, folder, theirs))
        write_json(arguments.out / "table.json", rows)
        write_text(arguments.out / "table.md", table(rows))
    print(table(rows), end="")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; differences are to the base model trained for as many epochs."""
    base = rows[0]
    lines = [
        f"| schedule | GFLOPs | share | off the shelf | after {base['epochs']} epochs "
        "| against base, trained as long | training images/s |\n",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    ]
    for row in rows:
        difference = row["best_top1"] - base["best_top1"]
        lines.append(
            f"| {Path(row['schedule']).name} | {row['flops'] / 1e9:.4f} | {row['ratio']:.3f} "
            f"| {row['start_top1']:.2f} | {row['best_top1']:.2f} | {difference:+.2f} "
            f"| {row['images_per_second']:.0f} |\n"
        )
    low, high = base["best_top1_ci95"]
    lines.append(
        f"\nTop-1 in percent on {base['count']} images; 95% interval of the trained base "
        f"{low:.2f} to {high:.2f}. 1 multiply-add = 1 FLOP, pooling included.\n"
    )
    return "".join(lines)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _finetune(
    arguments: argparse.Namespace, schedule: str, folder: Path, more: list[str]
) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "tpcli", "finetune", arguments.model, "--data", arguments.data,
        "--schedule", schedule, "--epochs", arguments.epochs, "--out", folder, "--json", *more,
    ]  # fmt: skip
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


if __name__ == "__main__":
    main()
