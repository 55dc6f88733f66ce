"""A command that needs an extra says which, before anything is measured."""

from __future__ import annotations

import importlib.util

import pytest

from tests.helpers.cli import Run
from tests.test_imports import BEHIND_EXTRAS

EXPORT = ("export", "--out", "model.onnx")
COMMANDS = {
    "onnx": [EXPORT, ("bench", "--runtime", "onnxruntime")],
    "onnx_ir": [EXPORT, ("bench", "--runtime", "onnxruntime")],
    "onnxscript": [EXPORT, ("bench", "--runtime", "onnxruntime-int8")],
    "onnxruntime": [("bench", "--runtime", "onnxruntime")],
    "openvino": [("bench", "--runtime", "openvino")],
}


@pytest.mark.parametrize("package", BEHIND_EXTRAS)
def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, *more: str) -> object:
        return None if name.partition(".")[0] == package else found(name, *more)

    for module in ("tpcli.export", "tpcli.config.choices"):
        monkeypatch.setattr(f"{module}.find_spec", find_spec)
    for command in COMMANDS[package]:
        outcome = run(*command)
        assert outcome.code == 2
        assert package in outcome.err
        assert f"tpcli[{BEHIND_EXTRAS[package]}]" in outcome.err
