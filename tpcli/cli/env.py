"""`tpcli env`: versions and devices."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tpcli.version import __version__

from . import render
from .groups import JsonOption
from .settings import find_settings

PACKAGES = ("torch", "timm", "numpy", "pillow", "fvcore", "scipy", "accelerate", "typer", "rich")
EXTRAS = ("triton", "onnx", "onnxscript", "onnxruntime", "openvino", "transformers")


def environment() -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    import torch

    from tpcli.pareto.cache import default_folder
    from tpcli.pooling.backends import c as c_kernels
    from tpcli.system.devices import device_name, pick_device

    facts = {
        "tpcli": f"{__version__} ({Path(__file__).parents[1]})",
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        **{name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        "CUDA": torch.version.cuda or torch.version.hip or "none in this torch",
        "device": device_name("auto"),
    }
    if pick_device("auto").type == "cuda":
        facts["devices"] = ", ".join(
            f"{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
        )
        facts["CPU"] = device_name("cpu")
    built = c_kernels.kernels is not None
    facts["CPU kernels"] = "compiled" if built else f"torch's operators{c_kernels.not_built}"
    return {**facts, "cache": str(default_folder())}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def env(as_json: JsonOption = False) -> None:
    """Show versions, devices, compiled kernels and settings, for bug reports.

    Examples:
        tpcli env
        tpcli env --json
    """

    render.quiet()
    where, _ = find_settings(Path.cwd())
    facts = {**environment(), "settings": where or "none"}
    if as_json:
        render.print_json(facts)
    else:
        render.print_facts(list(facts.items()))
