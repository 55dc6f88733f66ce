"""The figure of the HTML page: what is drawn where, for a template that writes it as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpcli.config.measures import MEASURES
from tpcli.pareto import Point, frontier
from tpcli.pareto.points import FINETUNED, spoken

from .figure import axis_for

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 50
"""Margins of the plot."""
COLOURS = 8
"""Colours that the page has for curves; BASE is that of text."""
BASE = -1
STAR = "M0-8.5 2.1-2.8 8.1-2.6 3.3 1.1 5 6.9 0 3.5-5 6.9-3.3 1.1-8.1-2.6-2.1-2.8Z"
SHAPES = (
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",
    "M-4-4H4V4H-4Z",
    "M0-5.2 4.9 3.6H-4.9Z",
    "M0-5.6 5.6 0 0 5.6-5.6 0Z",
    "M0 5.2 4.9-3.6H-4.9Z",
    "M-1.6-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
)


@dataclass(frozen=True)
class Mark:
    """A point: where it is, its interval from `top` to `bottom`, and what is said of it."""

    x: float
    y: float
    top: float
    bottom: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """Marks with a line through them; `link` is the dotted one on to the model without pooling."""

    name: str
    colour: int
    shape: str
    is_dashed: bool
    line: str
    link: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """All that is drawn, in units of a picture of WIDTH x HEIGHT."""

    curves: tuple[Curve, ...]
    frontier: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str
    y_label: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def chart(points: Sequence[Point], x: str = "gflops") -> Chart:
    """The chart of a sweep: a curve for each model and method, and one through the unpooled models.

    x: name in `AXES`.
    """
    axis = axis_for(x, points)
    x_scale = Scale(0, 1.06 * max(map(axis.of, points)), LEFT, WIDTH - RIGHT)
    low, high = min(p.score_lo for p in points), max(p.score_hi for p in points)
    room = 0.04 * max(high - low, 0.1)
    y_scale = Scale(low - room, min(high + room, 100 + room), HEIGHT - BOTTOM, TOP)

    def path(drawn: Sequence[Point]) -> str:
        places = [f"{x_scale(axis.of(p))} {y_scale(p.score)}" for p in drawn]
        return "M" + "L".join(places)

    def curve(name: str, own: list[Point], colour: int, shape: str, base: Point | None) -> Curve:
        own = sorted(own, key=axis.of)
        nearest = max(own, key=lambda p: p.gflops)
        marks = tuple(
            Mark(
                x=x_scale(axis.of(p)),
                y=y_scale(p.score),
                top=y_scale(p.score_hi),
                bottom=y_scale(p.score_lo),
                words=told(p),
            )
            for p in own
        )
        link = "" if base is None else path([nearest, base])
        line = path(own) if len(own) > 1 else ""
        return Curve(name, colour, shape, own[0].epochs > 0, line, link, marks)

    bases = [p for p in points if p.is_base]
    models = list(dict.fromkeys(p.model for p in points))
    methods = list(dict.fromkeys(p.method.removesuffix(FINETUNED) for p in points if not p.is_base))
    curves = []
    for model, method in dict.fromkeys((p.model, p.method) for p in points if not p.is_base):
        own = [p for p in points if (p.model, p.method) == (model, method)]
        base = next((b for b in bases if b.is_base_of(own[0])), None)
        rank = methods.index(method.removesuffix(FINETUNED))
        colour = (rank if len(models) == 1 else models.index(model)) % COLOURS
        name = spoken(method)
        name = name if len(models) == 1 else f"{model}, {name}"
        curves.append(curve(name, own, colour, SHAPES[rank % len(SHAPES)], base))
    for epochs in sorted({b.epochs for b in bases}):
        name = "without pooling, fine-tuned" if epochs else "without pooling"
        curves.append(curve(name, [b for b in bases if b.epochs == epochs], BASE, STAR, None))
    best = path(frontier(points)) if x == "gflops" else ""
    label = MEASURES[points[0].measure].axis
    return Chart(tuple(curves), best, x_scale.ticks(), y_scale.ticks(), axis.label, label)


@dataclass(frozen=True)
class Scale:
    """From numbers between `low` and `high` to places between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """A few round numbers: where they are, and how they are written."""
        from matplotlib.ticker import MaxNLocator

        values = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [float(v) for v in values if self.low - 1e-9 <= v <= self.high + 1e-9]
        return tuple((self(v), f"{v:.10g}") for v in inside)


def told(p: Point) -> tuple[str, ...]:
    """What is said of a point, a line each: what it is, what it costs, what it is worth."""
    what = "without pooling" if p.is_base else spoken(p.method)
    asked = "" if p.is_base else f", {p.asked}"
    lines = [
        f"{p.model}, {what}{asked}",
        f"{p.gflops:.4g} GFLOPs, {100 * p.gflops_ratio:.1f}% of the base",
        f"{MEASURES[p.measure].label} {p.score:.2f}% ({p.score_lo:.2f} to {p.score_hi:.2f})",
    ]
    if "latency_ms" in p.more:
        lines.append(f"{p.more['latency_ms']:.1f} ms, {p.more['speedup']:.2f} times as fast")
    return tuple(lines)
