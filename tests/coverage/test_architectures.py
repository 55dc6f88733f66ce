"""Every Vision Transformer of timm: one for each path through the code; all if exhaustive."""

from __future__ import annotations

from functools import cache

import pytest

from tests.helpers import architectures as zoo
from tests.helpers.selection import some_of
from tpcli.models import facts

SAMPLE = (
    "aimv2_1b_patch14_224",  # SwiGLU, no prefix tokens, average
    "beit_base_patch16_224",  # relative position bias in every block, average with a class token
    "deit_base_distilled_patch16_224",
    "eva02_enormous_patch14_clip_224",  # post-norm
    "eva02_small_patch14_224",  # rotary, EVA's own attention
    "naflexvit_base_patch16_map",  # attention pool with a prefix token
    "naflexvit_base_patch16_siglip",  # attention pool without one
    "test_vit_relpos",
    "vit_base_patch16_18x2_224",  # parallel branches
    "vit_base_patch16_rope_mixed_224",  # rotations of its own in every block and head
    "vit_base_patch16_rpn_224",  # post-norm
    "vit_base_patch16_sapiens2",  # DINOv3's rotations, fewer keys than queries, any image size
    "vit_base_patch16_xp_224",  # attention and MLP side by side
    "vit_dlittle_patch16_reg1_gap_256",  # differential attention
    "vit_dpwee_patch16_reg1_gap_256",  # the same, beside its MLP
    "vit_relpos_base_patch16_rpn_224",  # post-norm
    "vit_tiny_r_s16_p8_224",  # hybrid
)
"""Together they have every trait that occurs; the exhaustive run fails where one is missing."""


@cache
def sampled() -> set[tuple[str, ...]]:
    return set().union(*(zoo.traits(zoo.small(name)) for name in SAMPLE))


@pytest.mark.parametrize("name", some_of(SAMPLE[::3], SAMPLE))
def test_one_of_each_kind(name: str) -> None:
    zoo.check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", facts.names())
def test_all_architectures(name: str) -> None:
    if name not in SAMPLE:
        zoo.check(name)
    assert zoo.traits(zoo.small(name)) <= sampled(), "the sample has none of this kind"
