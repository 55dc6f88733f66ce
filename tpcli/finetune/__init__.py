"""Train a pooled model, and never lose work: data, engine, checkpoints, result folder."""

from tpcli.config.recipe import Recipe

from .data import TrainingData, match_data, open_data
from .result import FinetuneResult
from .run import finetune, join, leave
from .setup import Watcher, give_head
from .trainer import Interrupted

__all__ = [
    "FinetuneResult",
    "Interrupted",
    "Recipe",
    "TrainingData",
    "Watcher",
    "finetune",
    "give_head",
    "join",
    "leave",
    "match_data",
    "open_data",
]
