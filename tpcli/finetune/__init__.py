"""Train a pooled model, and never lose work: data, engine, checkpoints, result folder."""

from tpcli.recipe import Recipe

from .data import TrainingData, match_data, open_data
from .result import FinetuneResult
from .run import finetune, join, leave
from .stop import Interrupted
from .watch import Watcher

__all__ = [
    "FinetuneResult",
    "Interrupted",
    "Recipe",
    "TrainingData",
    "Watcher",
    "finetune",
    "join",
    "leave",
    "match_data",
    "open_data",
]
