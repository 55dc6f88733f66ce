"""Pooling operators: pure tensor maths on batches of tokens.

Nothing here knows of timm, of files or of the command line. A *method* assigns each token to a
cluster (`registry`); `clusters` turns the assignment into fewer tokens. Each method is a module
that registers itself on import.
"""

# methods are listed in the order of these imports
from . import centroids  # noqa: F401  # isort: skip
from . import ward  # noqa: F401  # isort: skip
from . import matching  # noqa: F401  # isort: skip
from . import agglomerative, pruning, density, grid  # noqa: F401  # isort: skip
from .backends import self_check, torch_ops  # noqa: F401  # isort: skip

from .clusters import Clusters, merge_tokens, reconstruction_loss, reduce_tokens
from .registry import Assignment, Method, get_method, methods, register

__all__ = [
    "Assignment",
    "Clusters",
    "Method",
    "get_method",
    "merge_tokens",
    "methods",
    "reconstruction_loss",
    "reduce_tokens",
    "register",
]
