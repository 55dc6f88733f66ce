"""How often a pooled model gives the unpooled model's answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .answers import Answers, chunks
from .scores import Scores, scores


def agreement(pooled: Answers, unpooled: Answers) -> Scores:
    """Which images have the same best class, and the mean KL(unpooled || pooled), in nats.

    Both: logits of the same images.
    """
    same, total = [], 0.0
    for ours, theirs in chunks(pooled.rows, unpooled.rows):
        same.append(ours.argmax(1) == theirs.argmax(1))
        each = F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="none"
        )
        total += float(each.sum(1).double().sum())
    found = torch.cat(same).numpy()
    kl = max(0.0, total / len(found))
    return scores("agreement", found, pooled.images_per_second, pooled.unreadable, kl=kl)
