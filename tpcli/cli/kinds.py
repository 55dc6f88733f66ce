"""The kinds of value that are tpcli's own: models, methods, schedules, data, devices; no torch."""

from __future__ import annotations

from tpcli import specs
from tpcli.cli.values import TEXT, Value, checked, whole
from tpcli.methods import METHODS, describe
from tpcli.schedule_forms import check_form, parse_budget
from tpcli.splits import SPLITS

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


def _model_names() -> list[str]:
    from tpcli.catalog import matching_names

    return [specs.DEMO, *matching_names()]


def _device(text: str) -> str:
    kind, colon, index = text.partition(":")
    has_index = kind in ("cuda", "xpu") and index.isdecimal() and index.isascii()
    if kind not in DEVICES or (colon and not has_index):
        raise ValueError(
            f"is unknown; use one of {', '.join(DEVICES)}, or one of several like cuda:1."
        )
    return text


def budgets(text: str) -> list[float]:
    """Shares of the FLOPs with commas between them, each once."""
    return list(dict.fromkeys(parse_budget(item) for item in text.split(",")))


def blocks(text: str) -> list[int]:
    """Numbers of blocks with commas between, each once, rising."""
    try:
        return sorted({whole(0, 10**4).read(item.strip(" ")) for item in text.split(",")})
    except ValueError:
        raise ValueError("has no numbers of blocks; give some with commas, like 3,6,9.") from None


def _methods(text: str) -> str:
    names = [name.strip(" ") for name in text.split(",")]
    if "" in names:
        raise ValueError(
            f"has an empty name; give one of {', '.join(METHODS)}, or several with one comma "
            "between them."
        )
    for name in names:
        describe(name)
    return text


MODEL = checked(specs.check_model, "MODEL", _model_names)
MODEL_ARGUMENT = checked(lambda text: specs.parse_model_kwargs([text]), "NAME=VALUE")
METHOD = checked(describe, "METHOD", lambda: METHODS)
SOME_METHODS = Value(_methods, "METHOD", lambda: METHODS)
SCHEDULE = checked(check_form, "SCHEDULE", lambda: ("flops:", "r:", "keep:", "tokens:", "none"))
DATA = checked(specs.check_data, "DATA", lambda: (specs.DEMO, *(f"{n}/" for n in specs.NAMED)))
BLOCKS = checked(blocks, "BLOCKS")
BUDGETS = checked(budgets, "SHARES")
BUDGET = Value(parse_budget, "SHARE")
SPLIT = Value(TEXT.read, "SPLIT", lambda: SPLITS)
DEVICE = Value(_device, "DEVICE", lambda: DEVICES)
SIZE = whole(1, 2**16)
"""Images in a batch, processes, and the like."""
