"""What each pooling method is called, takes and prefers, and where it is from; no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tpcli.errors import UserError, did_you_mean

OPTIONS = ("metric", "metric_dim", "weights", "start", "reduce", "iterations")
"""Pooling options that a method may take or not; position and proportional attention suit all."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of one method, written behind its name: `atc:linkage=complete`.

    choices: accepted words; None for a number from `minimum` to `maximum`, of default's type.
    """

    name: str
    default: str | int | float
    summary: str
    choices: tuple[str, ...] | None = None
    minimum: float = 0
    maximum: float = math.inf

    def parse(self, text: str, method: str) -> str | int | float:
        """The value that `text` stands for.

        Raises:
            UserError: it is not among those accepted.
        """
        if self.choices is not None:
            if text not in self.choices:
                raise UserError(
                    f"{self.name} {text!r} of method {method} is unknown; "
                    f"use one of {', '.join(self.choices)}."
                )
            return text
        try:
            value = float(text) if re.fullmatch(r"[\d.eE+-]+", text, re.ASCII) else math.nan
            whole = int(text) if isinstance(self.default, int) else None
        except ValueError:
            value, whole = math.nan, None
        if not (self.minimum <= value <= self.maximum and math.isfinite(value)):
            kind = "whole number" if isinstance(self.default, int) else "number"
            above = "or more" if self.maximum == math.inf else f"to {self.maximum:g}"
            raise UserError(
                f"{self.name} {text!r} of method {method} can't be used; "
                f"give a {kind} of {self.minimum:g} {above}."
            )
        return value if whole is None else whole


@dataclass(frozen=True)
class Description:
    """A way to turn N tokens into K, without the operator that does it.

    name: what the user types. summary: one line. paper: where it is from. defaults: pooling options
    that this method prefers over the general ones. takes: names from OPTIONS, those that have an
    effect on it. weights: accepted values of the option of that name, None for all. parameters:
    its own, which no other method has.
    """

    name: str
    summary: str
    paper: str
    defaults: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    takes: tuple[str, ...] = field(default=OPTIONS, kw_only=True)
    weights: tuple[str, ...] | None = field(default=None, kw_only=True)
    parameters: tuple[Parameter, ...] = field(default=(), kw_only=True)

    @property
    def options(self) -> tuple[str, ...]:
        """The pooling options that have an effect on this method."""
        taken = tuple(name for name in OPTIONS if name in self.takes)
        return (*taken, "position", "proportional_attention", "attention_bias")


def describe(spec: str) -> tuple[Description, dict[str, str | int | float]]:
    """The method of that name, and the parameters that follow it: `atc:linkage=complete`.

    Raises:
        UserError: there is none, or it has no such parameter; the message lists those there are.
    """
    name, *items = spec.split(":")
    if name not in METHODS:
        raise UserError(
            f"method {name!r} is unknown; use one of {', '.join(METHODS)}."
            f"{did_you_mean(name, METHODS)}"
        )
    method = METHODS[name]
    known = {parameter.name: parameter for parameter in method.parameters}
    values = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or key not in known:
            own = ", ".join(f"{name}:{p.name}={p.default}" for p in method.parameters)
            raise UserError(
                f"{item!r} is no parameter of method {name}; "
                + (f"write it like {own}." if own else "it has none, so leave it out.")
            )
        if key in values:
            raise UserError(f"method {spec!r} gives {key} twice; give it once.")
        values[key] = known[key].parse(text, name)
    return method, values


MARIN = "Marin et al., Token Pooling in Vision Transformers, WACV 2023"
MATCHING: dict[str, object] = {"metric": "keys", "position": "attention"}
PRUNING: dict[str, object] = {
    "metric": "tokens",
    "position": "attention",
    "proportional_attention": False,
}
ATTENTION = ("attention", "class", "significance")
LINKAGES = ("average", "complete", "single")

METHODS: dict[str, Description] = {
    method.name: method
    for method in (
        Description(
            "k-medoids", "K-Medoids by alternation; centres are tokens (the paper's choice).", MARIN
        ),
        Description(
            "wk-medoids",
            "The paper's own variant: K-Medoids weighted by significance, after the block.",
            MARIN,
            defaults={
                "metric": "tokens",
                "weights": "significance",
                "start": "top-k",
                "position": "block",
                "proportional_attention": False,
            },
        ),
        Description("k-means", "K-Means by Lloyd's algorithm; centres are means.", MARIN),
        Description(
            "ward",
            "Ward's hierarchical clustering in rounds; nearest to the optimum of the loss.",
            "Ward, Hierarchical Grouping to Optimize an Objective Function, JASA 1963",
            takes=("metric", "metric_dim", "weights", "reduce", "iterations"),
            defaults={"iterations": 0, "reduce": "norm"},
        ),
        Description(
            "tome",
            "Bipartite soft matching: merge the most similar pairs of two alternating sets.",
            "Bolya et al., Token Merging: Your ViT But Faster (ToMe), ICLR 2023",
            defaults=MATCHING,
            takes=("metric", "metric_dim", "reduce"),
        ),
        Description(
            "pitome",
            "Bipartite matching among tokens of high energy; isolated ones are protected.",
            "Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging "
            "(PiToMe), NeurIPS 2024",
            defaults=MATCHING,
            takes=("metric", "metric_dim", "reduce"),
            parameters=(
                Parameter(
                    "margin",
                    0.9,
                    "similarity from which two tokens are alike, at block 0",
                    maximum=1,
                ),
                Parameter(
                    "alpha",
                    1.0,
                    "how far below zero the energy of unlike tokens reaches",
                    maximum=1000,
                ),
            ),
        ),
        Description(
            "mctf",
            "Bipartite matching both ways of tokens that are alike, little looked at and small.",
            "Lee et al., Multi-criteria Token Fusion with One-step-ahead Attention (MCTF), "
            "CVPR 2024",
            defaults={"metric": "tokens", "position": "attention", "weights": "significance"},
            takes=("metric", "metric_dim", "weights"),
            weights=ATTENTION,
            parameters=(
                Parameter("information", 1 / 20, "exponent of the attention received", maximum=10),
                Parameter("size", 1 / 40, "exponent of the sizes", maximum=10),
            ),
        ),
        Description(
            "atc",
            "Agglomerative clustering by average, complete or single linkage, exact.",
            "Haurum et al., Agglomerative Token Clustering, ECCV 2024",
            defaults=MATCHING,
            takes=("metric", "metric_dim", "reduce"),
            parameters=(
                Parameter("linkage", "average", "distance of two clusters", choices=LINKAGES),
            ),
        ),
        Description(
            "top-k",
            "Keep the tokens that the class token attends to most; drop the others.",
            "Haurum et al., Which Tokens to Use?, ICCV Workshops 2023",
            defaults={**PRUNING, "weights": "attention"},
            takes=("weights",),
            weights=ATTENTION,
        ),
        Description(
            "evit",
            "Top-K, and one token fused from the rest, weighted by attention.",
            "Liang et al., Not All Patches are What You Need (EViT), ICLR 2022",
            defaults={**PRUNING, "weights": "attention"},
            takes=("weights",),
            weights=ATTENTION,
        ),
        Description(
            "power-bert",
            "Keep the tokens that receive most attention from all tokens; drop the others.",
            "Goyal et al., PoWER-BERT, ICML 2020",
            defaults={**PRUNING, "weights": "significance"},
            takes=("weights",),
            weights=("significance",),
        ),
        Description(
            "random",
            "Keep tokens at random, the same for every image; the control.",
            "a control in most papers on token reduction",
            defaults=PRUNING,
            takes=(),
            parameters=(Parameter("seed", 0, "which random choice", maximum=2**32 - 1),),
        ),
        Description(
            "diffrate",
            "Drop what the class token attends to least; merge the next into the most similar.",
            "Chen et al., DiffRate: Differentiable Compression Rate for Efficient Vision "
            "Transformers, ICCV 2023",
            defaults={"metric": "tokens", "position": "attention", "weights": "attention"},
            takes=("metric", "metric_dim", "weights"),
            weights=ATTENTION,
            parameters=(
                Parameter("dropped", 0.37, "share of the removed that is dropped", maximum=1),
            ),
        ),
        Description(
            "tofu",
            "ToMe's pairs: one token is dropped in the first half of the blocks, merged later.",
            "Kim et al., Token Fusion: Bridging the Gap between Token Pruning and Token Merging "
            "(ToFu), WACV 2024",
            defaults={**MATCHING, "reduce": "max-norm"},
            takes=("metric", "metric_dim"),
        ),
        Description(
            "dpc-knn",
            "Density peaks over nearest neighbours are centres; the others join the nearest.",
            "Zeng et al., Not All Tokens Are Equal (TCFormer), CVPR 2022",
            defaults={"metric": "tokens", "proportional_attention": False},
            takes=("metric", "metric_dim", "reduce"),
            parameters=(Parameter("neighbours", 5, "neighbours that density looks at", minimum=1),),
        ),
        Description(
            "grid",
            "Average pooling of the token grid in even boxes, while it is still a grid.",
            "average pooling as in convolutional networks",
            defaults={"metric": "tokens", "proportional_attention": False},
            takes=(),
        ),
    )
}
"""The methods there are, in the order in which they are listed."""
