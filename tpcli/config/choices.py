"""What options accept and what they default to, for the parser and for the library; no torch.

A list stands here if both the command line and the library need it. Methods, measures, runtimes and
fine-tuning recipes are larger than lists of words, and have modules of their own beside this one.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec

from tpcli.errors import UserError, did_you_mean, quoted

# How much is pooled
DEFAULT_SCHEDULE = "flops:0.6"
DEFAULT_BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the unpooled model's FLOPs that a sweep measures."""
SEARCH_BUDGETS = (0.75, 0.55, 0.4, 0.28)
"""Shares of the unpooled model's FLOPs that one search finds schedules for."""
BUDGET_MARGIN = 0.998
"""Searches aim at this share of a budget, as FLOPs are estimated before they are counted."""

DEFAULT_FAMILY, CONSTANT_FAMILY = FAMILIES = ("default", "constant")
"""Parametric schedules: the default family, or the same number of tokens removed at every block."""
BOTH_FAMILIES = "both"
SEARCHED = "search"
"""In place of a schedule: one that is searched for each method."""

# Which methods are compared, the recommended one first
SWEEP_METHODS = ("ward", "tome")
OPTIMIZE_METHODS = ("ward", "tome")
ANALYZE_METHODS = ("ward", "tome", "random")

# Search and optimization
OBJECTIVES = ("kl", "similarity", "reconstruction", "significance")
"""What a schedule is judged by."""
SEARCH_SPACES = ("options", "places")
"""What is searched besides the number of tokens: pooling options, and which blocks pool."""
RISKS = ("upper", "mean")
"""What must stay within the maximum drop: the upper end of its 95% interval, or its mean."""
DEFAULT_MAX_DROP = 0.5
"""Points of the measure."""

# Measures
BANKS = ("pooled", "unpooled")
"""Whose features of the training images k-NN searches."""

# Machines
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
DTYPES = ("float32", "bfloat16", "float16")
"""Precisions that are timed; 16-bit types run in autocast."""

# Export
EXPORT_FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
"""The suffix of each format."""
EXPORT_OUTPUTS = ("logits", "features", "dense")
EXPORT_DTYPES = ("float32", "float16")
LEAST_OPSET = 18
"""The first whose ScatterElements can take a minimum, which clustering needs."""

# Figures and tables
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
AXES = ("gflops", "throughput", "latency")
"""Horizontal axes of an accuracy curve."""
FIGURE_STYLES = ("screen", "paper")
CLUSTER_STYLES = ("mean", "outline", "size", "random")
"""How clusters are drawn."""
FLOPS_TABLES = ("block", "module", "op")
"""Rows of the table of FLOPs."""


def check_choice(name: str, value: str, accepted: Collection[str]) -> None:
    """Raise if `value` is not one of the words that the option `name` accepts.

    Raises:
        UserError: names the value, what is accepted, and what is near to it.
    """
    if value not in accepted:
        raise UserError(
            f"{name} {quoted(value)} is unknown; use {listed(accepted)}."
            f"{did_you_mean(value, accepted)}"
        )


def listed(names: Collection[str], most: int = 20) -> str:
    """`one of a, b, c`; of a list of more than `most`, some and how many there are."""
    if len(names) <= most:
        return f"one of {', '.join(names)}"
    return (
        f"one of the {len(names)} names that the help lists, such as {', '.join(list(names)[:5])}"
    )


@dataclass(frozen=True)
class Runtime:
    """A runtime: packages that it needs, and how to come by what is missing."""

    name: str
    packages: tuple[str, ...] = ()
    install: str = ""
    needs_compiler: bool = False

    @property
    def missing(self) -> str:
        """One sentence on what is not there and how to get it, or nothing."""
        gone = [package for package in self.packages if find_spec(package) is None]
        if gone:
            names, verb = " and ".join(gone), "is" if len(gone) == 1 else "are"
            return f"{self.name} needs {names}, which {verb} not installed; run: {self.install}"
        if self.needs_compiler and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            return f"{self.name} needs a C++ compiler; install g++ or clang"
        return ""


ONNX = ("onnx", "onnx_ir", "onnxscript")
EXPORT = "pip install 'tpcli[export]'"
RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("torch"),
        Runtime("onnxruntime", (*ONNX, "onnxruntime"), EXPORT),
        Runtime("onnxruntime-int8", (*ONNX, "onnxruntime"), EXPORT),
        Runtime("openvino", (*ONNX, "openvino"), "pip install 'tpcli[openvino]'"),
        Runtime("aoti", needs_compiler=True),
    )
}
"""By name: ONNX Runtime also with weights quantized to int8, AOTInductor as torch compiles it."""
