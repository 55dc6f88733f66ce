"""The curve of a run: score and loss over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tpcli.files import replacing
from tpcli.measures import MEASURES


def draw_curve(
    rows: Sequence[Mapping[str, float]], base_score: float, path: Path, measure: str = "top1"
) -> None:
    """Draw metrics rows (the first is the model before training) as a PNG, atomically."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    accuracy = figure.subplots()
    accuracy.axhline(base_score, color="black", linestyle="--", linewidth=1, label="unpooled model")
    for column, label, color in (
        (measure, "weights", "tab:blue"),
        (f"average_{measure}", "averaged weights", "tab:orange"),
    ):
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        if points:
            accuracy.plot(*zip(*points, strict=True), color=color, marker="o", ms=3, label=label)
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.set_xlabel("epoch (0: before training)")
    accuracy.set_ylabel(MEASURES[measure].axis)
    accuracy.grid(alpha=0.3)
    loss = accuracy.twinx()
    trained = rows[1:]
    loss.plot(
        [row["epoch"] for row in trained],
        [row["train_loss"] for row in trained],
        color="tab:gray",
        linewidth=1,
        alpha=0.7,
        label="training loss (right)",
    )
    loss.set_ylabel("training loss")
    lines = accuracy.get_lines() + loss.get_lines()
    labels = [str(line.get_label()) for line in lines]
    figure.legend(lines, labels, loc="outside upper center", ncols=4, fontsize=8)
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=150)
