"""Pooling options: one frozen value that says how tokens are pooled, and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from tpcli.errors import UserError, did_you_mean

from .methods import describe

DEFAULT_METHOD = "ward"

LARGEST_PROJECTION = 4096
MOST_ITERATIONS = 1000

SCORES = ("significance", "class", "attention")
"""Weights that are read off the block's attention. `attention` is the class token's, or, in a model
without one, the mean over all tokens, which is `significance` up to a factor."""


def _about(
    default: Any, text: str, choices: tuple[str, ...] = (), low: int = 0, high: int = 0
) -> Any:
    """A field that may be left out: the general default, its help, and what it accepts: one of
    `choices`, or a whole number, or a bool."""
    about = {"default": default, "help": text, "choices": choices, "low": low, "high": high}
    return field(default=None, metadata=about)


@dataclass(frozen=True)
class PoolingOptions:
    """How tokens are pooled, apart from how many. What is left out takes the method's defaults.

    method: name in the registry, with the method's own parameters if wanted. metric: what
    distances are measured on. metric_dim: channels of a random projection of the metric, or None
    for all. weights: clustering weight of a token. start: tokens that clustering starts from.
    reduce: how a cluster becomes a token. iterations: steps (or rounds) of the method. position:
    after the block, or between its attention and its MLP; None is the latter where a block has such
    a place. proportional_attention: a token that stands for s tokens counts s times as a key.
    attention_bias: whether it does so by a mask, or by one more channel of queries and keys, which
    leaves flash attention its kernels; the logits are the same up to rounding.

    Raises:
        UserError: the method or one of the values is unknown, or has no effect on this method.
    """

    method: str = DEFAULT_METHOD
    metric: str = _about(
        "normalized", "Tensor that distances are measured on", ("tokens", "normalized", "keys")
    )
    metric_dim: int | None = _about(
        None, "Channels of a random projection of the metric.", low=1, high=LARGEST_PROJECTION
    )
    weights: str = _about(
        "size",
        "Clustering weight of a token",
        ("size", "significance", "uniform", "class", "attention"),
    )
    start: str = _about(
        "matching", "Initial cluster centres", ("top-k", "matching", "even", "ward")
    )
    reduce: str = _about(
        "mean",
        "How a cluster becomes one token (norm, max-norm: a mean scaled to the mean or largest "
        "norm of its members; significance: a weighted mean)",
        ("mean", "norm", "max-norm", "significance", "medoid"),
    )
    iterations: int = _about(3, "Iterations of the method.", low=0, high=MOST_ITERATIONS)
    position: str | None = _about(
        None, "Pool after a whole block, or inside it after attention", ("block", "attention")
    )
    proportional_attention: bool = _about(
        True, "Weight each key by its token's size in attention (adds log size to the logits)."
    )
    attention_bias: str = _about(
        "mask",
        "How attention learns the sizes: an additive mask, or an extra channel",
        ("mask", "channel"),
    )

    def __post_init__(self) -> None:
        chosen, _ = describe(self.method)
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            default = chosen.defaults.get(item.name, item.metadata["default"])
            if value is None:
                object.__setattr__(self, item.name, default)
                continue
            _check(item, value)
            if item.name not in chosen.options and value != default:
                raise UserError(
                    f"method {self.method} takes no {item.name}; leave it out "
                    f"(it takes {', '.join(chosen.options)})."
                )
        if chosen.weights is not None and self.weights not in chosen.weights:
            raise UserError(
                f"method {self.method} can't take weights {self.weights!r}; "
                f"use one of {', '.join(chosen.weights)}."
            )

    @property
    def needs_scores(self) -> bool:
        """Whether attention has to be looked at, which costs a second softmax(QK^T)."""
        return self.weights in SCORES or self.reduce == "significance"

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON; `attention_bias` only where it is not the default."""
        values = asdict(self)
        if self.attention_bias == "mask":
            del values["attention_bias"]
        return values


def _check(item: Field[Any], value: object) -> None:
    name, about = item.name, item.metadata
    if about["choices"]:
        if value not in about["choices"]:
            raise UserError(
                f"{name} {value!r} is unknown; use one of {', '.join(about['choices'])}."
                f"{did_you_mean(str(value), about['choices'])}"
            )
    elif about["high"]:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name} {value!r} is no whole number; give one.")
        if not about["low"] <= value <= about["high"]:
            raise UserError(
                f"{name} {value} is out of range; use {about['low']} to {about['high']}."
            )
    elif not isinstance(value, bool):
        raise UserError(f"{name} {value!r} is neither true nor false; give one of them.")


def pooling_options(method: str | None = None, **given: object) -> PoolingOptions:
    """Options for `method`: what is given (None means not given), else the method's own defaults.

    Raises:
        UserError: as `PoolingOptions`, or an option is unknown.
    """
    return replaced(PoolingOptions(DEFAULT_METHOD if method is None else method), **given)


def replaced(options: PoolingOptions, **given: object) -> PoolingOptions:
    """The same options but for those given; None means not given.

    Raises:
        UserError: as `pooling_options`.
    """
    known = {item.name for item in fields(PoolingOptions)[1:]}
    for key in given:
        if key not in known:
            raise UserError(
                f"pooling option {key!r} is unknown; use one of {', '.join(sorted(known))}."
            )
    return replace(options, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]


def options_from_dict(values: Mapping[str, object], **given: object) -> PoolingOptions:
    """Options from what `PoolingOptions.to_dict` wrote; missing keys take the method's defaults.

    Options that have no effect on the method are passed over: what was written holds them all.
    given: options that replace those written; None means not given.

    Raises:
        UserError: as `pooling_options`.
    """
    method = str(values.get("method") or DEFAULT_METHOD)
    idle = {f.name for f in fields(PoolingOptions)} - set(describe(method)[0].options)
    written = {k: v for k, v in values.items() if k not in idle | {"method"}}
    new = {k: v for k, v in given.items() if v is not None}
    return pooling_options(method, **{**written, **new})
