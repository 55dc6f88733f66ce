"""DATA: what lies in a folder, a .tar or a data set of timm's, as batches of labelled images."""

from .class_map import read_class_map
from .files import LeftOut, describe
from .images import UNREADABLE, ImageData
from .labels import Head
from .loading import batches
from .opening import check_classes, create, match_classes

__all__ = [
    "UNREADABLE",
    "Head",
    "ImageData",
    "LeftOut",
    "batches",
    "check_classes",
    "create",
    "describe",
    "match_classes",
    "read_class_map",
]
