"""Pooling operators: pure tensor maths on batches of tokens.

Nothing here knows of timm, of files or of the command line. A *method* assigns each token to a
cluster (`registry`); `clusters` turns the assignment into fewer tokens. Each method is a module
that registers itself on import.
"""

from . import agglomerative, centroids, grid, matching, pruning, ward  # noqa: F401
from .backends import self_check, torch_ops  # noqa: F401
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
