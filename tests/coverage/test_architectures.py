"""Every Vision Transformer of timm: a fast sample, and the whole walk."""

from __future__ import annotations

import warnings

import pytest
import timm

from tests.coverage import zoo
from tpcli.catalog import MODULES

SAMPLE = (
    "beit_base_patch16_224",  # relative position bias in every block
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_map",
    "naflexvit_base_patch16_radio_v3",
    "naflexvit_base_patch16_siglip",
    "test_vit_relpos",
    "vit_relpos_base_patch16_cls_224",
    "vit_relpos_base_patch16_clsgap_224",
    "vit_relpos_base_patch16_rpn_224",  # post-norm
    "aimv2_1b_patch14_224",  # SwiGLU, no prefix tokens
    "beit3_base_patch16_224",  # normed attention and MLP, average with a class token
    "deit3_base_patch16_224",
    "deit_base_distilled_patch16_224",
    "eva02_base_patch14_224",  # rotary, SwiGLU with norm
    "eva02_base_patch16_clip_224",
    "eva02_enormous_patch14_clip_224",  # post-norm
    "eva02_small_patch14_224",
    "eva_giant_patch14_224",
    "eva_giant_patch14_clip_224",
    "test_vit",
    "test_vit2",
    "test_vit3",  # attention pool with prefix tokens
    "vit_base_patch14_reg1_tipsv2",
    "vit_base_patch16_18x2_224",  # parallel branches
    "vit_base_patch16_dinov3",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_lingbot",
    "vit_base_patch16_reg4_gap_256",
    "vit_base_patch16_rope_224",
    "vit_base_patch16_rope_mixed_224",  # rotations of its own in every block and head
    "vit_base_patch16_rope_reg1_gap_256",
    "vit_base_patch16_rpn_224",  # post-norm
    "vit_base_patch16_siglip_224",  # attention pool
    "vit_base_patch16_xp_224",  # attention and MLP side by side
    "vit_dlittle_patch16_reg1_gap_256",  # differential attention
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_giant_patch16_lingbot",
    "vit_pe_core_base_patch16_224",
    "vit_pe_core_gigantic_patch14_448",
    "vit_pe_lang_gigantic_patch14_448",
    "vit_pe_lang_large_patch14_448",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_base_patch16_sapiens2",  # fewer keys than queries, gated MLP
    "vit_tiny_r_s16_p8_224",  # hybrid
    "vit_7b_patch16_dinov3",
)
"""One architecture for each signature that occurs; the walk fails where one is missing."""


@pytest.mark.parametrize("name", SAMPLE)
def test_one_of_each_kind(name: str) -> None:
    zoo.check(name)


@pytest.mark.walk
def test_all_architectures(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {module: set(timm.list_models(module=module)) for module in MODULES}
    names = sorted(set().union(*groups.values()))
    failures, signatures = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                signatures[name] = zoo.check(name)
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {error}"
    with capsys.disabled():
        for group, members in groups.items():
            print(f"\n{group}: {len(members - failures.keys())} of {len(members)}", end="")
        print(f"\n{len(names) - len(failures)} of {len(names)} architectures")
        for name, reason in failures.items():
            print(f"{name}: {reason}")
    assert not failures
    sampled = {signatures[name] for name in SAMPLE}
    missing = {s: name for name, s in signatures.items() if s not in sampled}
    assert not missing, f"the sample lacks {sorted(missing.values())}"
