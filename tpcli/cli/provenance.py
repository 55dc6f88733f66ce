"""How a report was made: the command, the versions, the day."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from tpcli.config import specs

from .field_options import FinetuneGroup, MethodGroup
from .groups import DataGroup, ModelGroup
from .settings import command_line
from .values import typed

if TYPE_CHECKING:
    from tpcli.pareto import Point
    from tpcli.report import ReportContext


def report_context(
    title: str,
    data: str,
    count: int,
    device: str,
    amp: bool,
    command_for: Callable[[Point], str] | None = None,
) -> ReportContext:
    """What a reader of a report needs to know of this run."""
    import datetime
    import platform

    import timm
    import torch

    from tpcli.report import ReportContext
    from tpcli.version import __version__

    more = {} if command_for is None else {"command_for": command_for}
    return ReportContext(
        title=title,
        data=data,
        count=count,
        device=device,
        precision="16-bit autocast" if amp else "float32",
        command=command_line(),
        versions={
            "tpcli": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "Python": platform.python_version(),
        },
        date=datetime.date.today().isoformat(),
        **more,
    )


@dataclass(frozen=True)
class CommandFor:
    """The command that makes a point: `tpcli apply`, or `finetune` of one that was trained.

    specs: the MODEL argument of each model of the sweep, by its name.
    """

    specs: Mapping[str, str]
    loading: ModelGroup
    pooling: MethodGroup
    source: DataGroup
    training: FinetuneGroup

    def __call__(self, point: Point) -> str:
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
    return [
        word
        for item in fields(group)
        if item.name not in but and getattr(group, item.name) != item.default
        for word in typed(item.name, getattr(group, item.name))
    ]
