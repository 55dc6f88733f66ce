"""`tpcli models`: what is listed, and that its GFLOPs are those that are counted."""

from __future__ import annotations

import pytest

from tests.helpers import architectures as zoo
from tests.helpers.cli import Run
from tpcli.errors import UserError
from tpcli.flops import count_flops
from tpcli.models.catalog import architectures, closed_form_flops, matching_names

COUNTED = (
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch16_18x2_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_xp_224",
    "vit_dlittle_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_pe_core_base_patch16_224",
    "vit_small_patch16_dinov3",
)


@pytest.mark.parametrize("name", COUNTED)
def test_closed_form_is_within_one_percent(name: str) -> None:
    model = zoo.small(name)
    assert closed_form_flops(model) == pytest.approx(count_flops(model).total, rel=0.01)


def test_hybrids_have_no_closed_form() -> None:
    assert closed_form_flops(zoo.small("vit_tiny_r_s16_p8_224")) is None


def test_an_architecture_is_described() -> None:
    (deit,) = architectures(["deit_tiny_distilled_patch16_224"])
    assert (deit.model_class, deit.image_size) == ("VisionTransformerDistilled", (224, 224))
    assert (deit.blocks, deit.patch_tokens, deit.prefix_tokens) == (12, 196, 2)
    assert deit.params == 5910800
    assert deit.pretrained


@pytest.mark.parametrize(
    ("pattern", "count"), [("dinov3", 12), ("deit_*_distilled_*", 4), ("vit_tiny_patch16_224", 1)]
)
def test_filters(pattern: str, count: int) -> None:
    assert len(matching_names(pattern)) == count


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("resnet18", r"matches .*resnet18.* and no Vision Transformer"),
        ("diet_tiny_patch16_224", r"matches no model of timm .*Did you mean deit_tiny_patch16_224"),
    ],
)
def test_nothing_matches(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        matching_names(pattern)


def test_the_command(run: Run) -> None:
    listed = {row["name"]: row for row in run("models", "deit_tiny", "--json").document}
    assert sorted(listed) == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
    assert listed["deit_tiny_patch16_224"]["flops"] == 1258411200
