"""DATA: what lies in a folder, a .tar or a data set of timm's, as batches of images."""

from .classes import Head, Unmatched, read_class_map
from .images import UNREADABLE, ImageData
from .listing import LeftOut, describe
from .loading import batches
from .open import count_of, create, match_classes, subset
from .overlap import chosen_on, overlap, warnings

__all__ = [
    "UNREADABLE",
    "Head",
    "ImageData",
    "LeftOut",
    "Unmatched",
    "batches",
    "chosen_on",
    "count_of",
    "create",
    "describe",
    "match_classes",
    "overlap",
    "read_class_map",
    "subset",
    "warnings",
]
