"""The version, and a hash of the code; importing this imports nothing else of the package."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.2.0"

SOURCES = (".py", ".c", ".h")


@cache
def code_version(is_trained: bool = False) -> str:
    """A hash of the sources that decide what is measured, with those of training if asked for.

    It differs where C kernels run from where they don't.
    """
    from tpcli.pooling.backends import c as c_kernels

    package = Path(__file__).parent
    aside = {"cli", "report"} | (set() if is_trained else {"finetune"})
    digest = hashlib.sha256(b"" if c_kernels.kernels is None else b"loops")
    for path in sorted(p for p in package.rglob("*") if p.suffix in SOURCES):
        if path.relative_to(package).parts[0] not in aside:
            digest.update(path.read_bytes())
    return digest.hexdigest()
