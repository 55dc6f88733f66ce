"""Commands to type next, written out: what makes a point of a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tpcli import specs
from tpcli.cli.groups import DataGroup, ModelGroup
from tpcli.cli.pooling_options import MethodGroup
from tpcli.cli.recipe_options import FinetuneGroup

if TYPE_CHECKING:
    from tpcli.pareto import Point


@dataclass(frozen=True)
class Maker:
    """Writes the command that makes a point: `tpcli apply`, or `finetune` of one that was trained.

    specs: what each model of the sweep was given as, by its name in it.
    """

    specs: Mapping[str, str]
    loading: ModelGroup
    pooling: MethodGroup
    source: DataGroup
    training: FinetuneGroup

    def command(self, point: Point) -> str:
        """The command, or nothing for a model as it came."""
        from tpcli.pareto.points import FINETUNED

        if point.is_base and not point.epochs:
            return ""
        spec = self.specs[point.model]
        method = point.method.removesuffix(FINETUNED)
        words = ["tpcli", "finetune" if point.epochs else "apply", spec, *flags(self.loading)]
        if point.is_base:
            words += ["--schedule", "none"]
        else:
            words += ["--schedule", point.schedule, "--method", method, *flags(self.pooling)]
        if point.epochs:
            train = ["--data", self.source.data or specs.DEMO, *flags(self.source, but=("data",))]
            if self.training.finetune_config is not None:
                train += ["--config", str(self.training.finetune_config)]
            if self.training.train_split != "train":
                train += ["--train-split", self.training.train_split]
            words += [*train, "--epochs", str(point.epochs)]
        name = f"{specs.base_name(spec)}-{method.partition(':')[0]}-{100 * point.gflops_ratio:.0f}"
        return shlex.join([*words, "--out", f"{name}-finetuned" if point.epochs else name])


def flags(group: Any, but: tuple[str, ...] = ()) -> list[str]:
    """The options of a group that are not what they are when left out, as one types them."""
    words: list[str] = []
    for item in fields(group):
        value = getattr(group, item.name)
        if value == item.default or item.name in but:
            continue
        flag = item.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [f"--{flag}", str(each)]
    return words
