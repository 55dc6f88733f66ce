"""How a model is pooled: what is remembered on it and written with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tpcli.config.options import PoolingOptions, options_from_dict
from tpcli.config.schedule import Schedule
from tpcli.errors import UserError

from .geometry import vit_of

FORMAT = "tpcli-pooling/1"


@dataclass(frozen=True)
class PoolingSpec:
    """How a model is pooled; remembered on the model and in its `config.json`."""

    schedule: Schedule
    options: PoolingOptions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the `token_pooling` key of `config.json`."""
        return {
            "format": FORMAT,
            "schedule": self.schedule.spec,
            "patch_tokens": self.schedule.patch_tokens,
            "tokens": list(self.schedule.tokens),
            "method": self.options.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Any) -> PoolingSpec:
        """What `to_dict` wrote.

        Raises:
            UserError: the values are not what `to_dict` writes.
        """
        try:
            _check_written(values)
            schedule = Schedule(tuple(values["tokens"]), values["patch_tokens"], values["schedule"])
            return cls(schedule, options_from_dict(values["method"]))
        except (UserError, ValueError) as error:
            raise UserError(
                f"config.json has a token_pooling that can't be read: {str(error).rstrip('.')}."
            ) from None


def _check_written(values: Any) -> None:
    """Raise ValueError unless the values are of the types that `to_dict` writes."""
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} is no object")
    if values.get("format") != FORMAT:
        raise ValueError(f"its format is {values.get('format')!r}, and this version reads {FORMAT}")
    for key, kind in {"schedule": str, "patch_tokens": int, "tokens": list, "method": dict}.items():
        if type(values.get(key)) is not kind:
            raise ValueError(f"{key} {values.get(key)!r} is no {kind.__name__}")
    for count in (values["patch_tokens"], *values["tokens"]):
        if type(count) is not int:  # a bool is an int to isinstance
            raise ValueError(f"{count!r} is no number of tokens")


def pooling_spec(model: nn.Module) -> PoolingSpec | None:
    """How `model` is pooled, or None."""
    return vars(vit_of(model)).get("token_pooling_spec")
