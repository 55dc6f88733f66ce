"""What tpcli runs on: versions, devices, which loops; for bug reports."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tpcli.version import __version__

PACKAGES = ("torch", "timm", "numpy", "pillow", "fvcore", "scipy", "accelerate", "typer", "rich")
EXTRAS = ("triton", "onnx", "onnxscript", "onnxruntime", "openvino", "transformers")


def environment() -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    import torch

    from tpcli.devices import device_name, pick_device
    from tpcli.pareto.cache import default_folder
    from tpcli.pooling import native

    facts = {
        "tpcli": f"{__version__} ({Path(__file__).parent})",
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
    built = native.kernels is not None
    facts["loops on a CPU"] = "compiled" if built else f"torch's operators{native.not_built}"
    return {**facts, "cache": str(default_folder())}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
