"""Prune pretrained timm Vision Transformers by Token Pooling.

The public functions are looked up on first use, so that importing tpcli imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tpcli.version import __version__

if TYPE_CHECKING:
    from tpcli.config.schedule import Schedule
    from tpcli.evaluation.run import evaluate
    from tpcli.flops import count_flops
    from tpcli.models.load import load
    from tpcli.models.save import save
    from tpcli.report import show
    from tpcli.schedules.resolve import pool
    from tpcli.surgery import find, spread, trace, unpool

_HOME = {
    "Schedule": "tpcli.config.schedule",
    "count_flops": "tpcli.flops",
    "evaluate": "tpcli.evaluation.run",
    "find": "tpcli.surgery",
    "load": "tpcli.models.load",
    "pool": "tpcli.schedules.resolve",
    "save": "tpcli.models.save",
    "show": "tpcli.report",
    "spread": "tpcli.surgery",
    "trace": "tpcli.surgery",
    "unpool": "tpcli.surgery",
}

__all__ = [
    "Schedule",
    "__version__",
    "count_flops",
    "evaluate",
    "find",
    "load",
    "pool",
    "save",
    "show",
    "spread",
    "trace",
    "unpool",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tpcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
