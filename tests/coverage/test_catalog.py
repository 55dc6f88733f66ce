"""`tpcli models`: what is listed, and that the stored facts and GFLOPs are those of the models."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers import architectures as zoo
from tests.helpers.cli import Run
from tests.helpers.selection import some_of
from tpcli.errors import UserError
from tpcli.flops import count_flops
from tpcli.models import catalog, facts

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
    assert facts.closed_form_flops(model) == pytest.approx(count_flops(model).total, rel=0.01)


def test_hybrids_have_no_closed_form() -> None:
    assert facts.closed_form_flops(zoo.small("vit_tiny_r_s16_p8_224")) is None


def test_an_architecture_is_described() -> None:
    (deit,) = catalog.architectures("deit_tiny_distilled_patch16_224")
    assert (deit.model_class, deit.image_size) == ("VisionTransformerDistilled", (224, 224))
    assert (deit.blocks, deit.patch_tokens, deit.prefix_tokens) == (12, 196, 2)
    assert deit.params == 5910800
    assert deit.pretrained


@pytest.mark.parametrize("name", some_of(COUNTED, facts.names()))
def test_stored_facts_are_those_of_the_model(name: str) -> None:
    stored = {one.name: asdict(one) for one in catalog.architectures()}
    assert stored.get(name) == facts.facts_of(name)


def test_no_architecture_is_missing() -> None:
    """All that are listed belong to the installed timm; those left out can't be pooled."""
    listed = {one.name for one in catalog.architectures()}
    assert listed <= set(facts.names())
    for name in set(facts.names()) - listed:
        assert facts.facts_of(name) is None


def test_another_version_of_timm_builds_only_what_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = catalog.architectures("deit_tiny")
    stored = json.loads(catalog.FACTS.read_text())
    rows = [row for row in stored["architectures"] if row["name"] != expected[0].name]
    gone = {**rows[0], "name": "deit_tiny_of_another_timm"}
    older = {"timm": "0.9", "architectures": [*rows, gone]}
    (tmp_path / "facts.json").write_text(json.dumps(older))
    monkeypatch.setattr(catalog, "FACTS", tmp_path / "facts.json")
    assert catalog.architectures("deit_tiny") == expected


def test_listing_needs_neither_torch_nor_timm() -> None:
    program = (
        "import sys; from tpcli.models.catalog import architectures; "
        "assert architectures(); print([m for m in ('torch', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("pattern", "count"), [("dinov3", 12), ("deit_*_distilled_*", 4), ("vit_tiny_patch16_224", 1)]
)
def test_filters(pattern: str, count: int) -> None:
    assert len(catalog.architectures(pattern)) == count


@pytest.mark.parametrize(
    ("pattern", "named"),
    [("resnet18", "resnet18"), ("diet_tiny_patch16_224", "deit_tiny_patch16_224")],
)
def test_nothing_matches(pattern: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        catalog.architectures(pattern)


def test_the_command(run: Run) -> None:
    listed = {row["name"]: row for row in run("models", "deit_tiny", "--json").document}
    assert sorted(listed) == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
    assert listed["deit_tiny_patch16_224"]["flops"] == 1258411200
