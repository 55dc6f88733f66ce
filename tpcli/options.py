"""Pooling options: one frozen value that says how tokens are pooled, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from tpcli.errors import UserError, did_you_mean

DEFAULT_METHOD = "ward"

CHOICES: dict[str, tuple[str, ...]] = {
    "metric": ("tokens", "normalized", "keys"),
    "weights": ("size", "significance", "uniform", "class", "attention"),
    "start": ("top-k", "matching", "even", "ward"),
    "reduce": ("mean", "norm", "significance", "medoid"),
    "position": ("block", "attention"),
}
SCORES = ("significance", "class", "attention")
"""Weights that are read off the block's attention. `attention` is the class token's, or, in a model
without one, the mean over all tokens, which is `significance` up to a factor."""


@dataclass(frozen=True)
class PoolingOptions:
    """How tokens are pooled, apart from how many.

    method: name in the registry, with the method's own parameters if wanted. metric: what
    distances are measured on. metric_dim: channels of a random projection of the metric, or None
    for all. weights: clustering weight of a token. start: tokens that clustering starts from.
    reduce: how a cluster becomes a token. iterations: steps (or rounds) of the method. position:
    after the block, or between its attention and its MLP; None is the latter where a block has such
    a place. proportional_attention: a token that stands for s tokens counts s times as a key.

    Raises:
        UserError: a value is not among those accepted.
    """

    method: str = DEFAULT_METHOD
    metric: str = "normalized"
    metric_dim: int | None = None
    weights: str = "size"
    start: str = "matching"
    reduce: str = "mean"
    iterations: int = 3
    position: str | None = None
    proportional_attention: bool = True

    def __post_init__(self) -> None:
        for name in ("iterations", "metric_dim"):
            number = getattr(self, name)
            if not isinstance(number, int | None) or isinstance(number, bool):
                raise UserError(f"{_flag(name)} {number!r} is no whole number; give one.")
        for name, accepted in CHOICES.items():
            value = getattr(self, name)
            if value not in accepted and not (name == "position" and value is None):
                raise UserError(
                    f"--{name} {value!r} is unknown; use one of {', '.join(accepted)}."
                    f"{did_you_mean(str(value), accepted)}"
                )
        if self.iterations < 0:
            raise UserError(f"--iterations {self.iterations} is negative; use 0 or more.")
        if self.metric_dim is not None and self.metric_dim < 1:
            raise UserError(f"--metric-dim {self.metric_dim} is below 1; use 1 or more channels.")

    @property
    def needs_scores(self) -> bool:
        """Whether attention has to be looked at, which costs a second softmax(QK^T)."""
        return self.weights in SCORES or self.reduce == "significance"

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def pooling_options(method: str | None = None, **given: object) -> PoolingOptions:
    """Options for `method`: what is given (None means not given), else the method's own defaults.

    Raises:
        UserError: the method or one of the values is unknown, or has no effect on this method.
    """
    from tpcli.pooling import get_method

    name = method or DEFAULT_METHOD
    known = {f.name for f in fields(PoolingOptions)} - {"method"}
    for key in given:
        if key not in known:
            raise UserError(
                f"pooling option {key!r} is unknown; use one of {', '.join(sorted(known))}."
            )
    chosen = get_method(name)
    defaults = PoolingOptions(method=name, **chosen.defaults)  # type: ignore[arg-type]
    options = replace(defaults, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
    for key in known - set(chosen.options):
        if getattr(options, key) != getattr(defaults, key):
            raise UserError(
                f"method {name} takes no {_flag(key)}; leave it out "
                f"(it takes {', '.join(map(_flag, chosen.options))})."
            )
    if chosen.weights is not None and options.weights not in chosen.weights:
        raise UserError(
            f"method {name} can't take --weights {options.weights}; "
            f"use one of {', '.join(chosen.weights)}."
        )
    return options


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def options_from_dict(values: Mapping[str, object], **given: object) -> PoolingOptions:
    """Options from what `PoolingOptions.to_dict` wrote; missing keys take the method's defaults.

    Options that have no effect on the method are passed over: what was written holds them all.
    given: options that replace those written; None means not given.

    Raises:
        UserError: as `pooling_options`.
    """
    from tpcli.pooling import get_method

    method = str(values.get("method") or DEFAULT_METHOD)
    idle = {f.name for f in fields(PoolingOptions)} - set(get_method(method).options)
    written = {k: v for k, v in values.items() if k not in idle | {"method"}}
    replaced = {k: v for k, v in given.items() if v is not None}
    return pooling_options(method, **{**written, **replaced})
