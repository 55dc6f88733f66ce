"""Insert pooling into timm models and take it out again; the one place that knows timm's blocks."""

from .dense import spread
from .geometry import PoolingSpec, pooling_spec
from .insert import check_supported, find, insert, unpool, unpooled, with_place
from .layer import PooledTokens, TokenPooling
from .trace import trace

__all__ = [
    "PooledTokens",
    "PoolingSpec",
    "TokenPooling",
    "check_supported",
    "find",
    "insert",
    "pooling_spec",
    "spread",
    "trace",
    "unpool",
    "unpooled",
    "with_place",
]
