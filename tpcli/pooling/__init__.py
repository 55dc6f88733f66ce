"""Pooling operators: pure tensor maths on batches of tokens.

Nothing here knows of timm, of files or of the command line. A *method* assigns each token to a
cluster (`registry`); `clusters` turns the assignment into fewer tokens. Each method is a module
that registers itself on import.
"""

from . import centroids as kmedoids  # noqa: F401  # isort: skip  (the order in which
from . import centroids as kmeans  # noqa: F401  # isort: skip  (the order in which
from . import ward  # noqa: F401  # isort: skip  (the order in which
from . import matching as bipartite  # noqa: F401  # isort: skip  (the order in which
from . import matching as criteria  # noqa: F401  # isort: skip  they are listed)
from . import agglomerative  # noqa: F401  # isort: skip  they are listed)
from . import pruning as selection  # noqa: F401  # isort: skip  they are listed)
from . import pruning as fusion  # noqa: F401  # isort: skip
from . import density  # noqa: F401  # isort: skip
from . import grid  # noqa: F401  # isort: skip
from tpcli.pooling.backends import torch_ops as graph  # noqa: F401  # registers operators of torch

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
