"""Pooling operators: pure tensor maths on batches of tokens.

Nothing here knows of timm, of files or of the command line. A *method* assigns each token to a
cluster (`registry`); `clusters` turns the assignment into fewer tokens. Each method is a module
that registers itself on import.
"""

from . import kmedoids, kmeans, ward, bipartite, agglomerative, density, selection, grid  # isort: skip  (their order)
from .clusters import Clusters, reconstruction_loss, reduce_tokens
from .registry import Assignment, Method, get_method, methods, register

__all__ = [
    "Assignment",
    "Clusters",
    "Method",
    "get_method",
    "methods",
    "reconstruction_loss",
    "reduce_tokens",
    "register",
]
