"""How a report was made: the command, the versions, the day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpcli.cli.settings import command_line

if TYPE_CHECKING:
    from tpcli.report import ReportContext


def report_context(title: str, data: str, count: int, device: str, amp: bool) -> ReportContext:
    """What a reader of a report needs to know of this run."""
    import datetime
    import platform

    import timm
    import torch

    from tpcli.report import ReportContext
    from tpcli.version import __version__

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
    )
