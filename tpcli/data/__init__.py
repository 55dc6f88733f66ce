"""DATA: what lies in a folder, a .tar or a data set of timm's, as batches of images."""

from .class_map import read_class_map
from .files import LeftOut, describe
from .images import UNREADABLE, ImageData
from .labels import Head, Unmatched
from .loading import batches
from .opening import check_classes, count_of, create, match_classes, overlap, subset

__all__ = [
    "UNREADABLE",
    "Head",
    "ImageData",
    "LeftOut",
    "Unmatched",
    "batches",
    "check_classes",
    "count_of",
    "create",
    "describe",
    "match_classes",
    "overlap",
    "read_class_map",
    "subset",
]
