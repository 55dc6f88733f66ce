"""The runtimes by name, and what each needs; imports none of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec


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
