"""MODEL specs: loading, saving, checkpoints, and every way in which a model can be wrong."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from tests.helpers.models import SMALL, images, tiny_vit
from tpcli import load, pool, save, unpool
from tpcli.config.options import pooling_options
from tpcli.config.specs import base_name, parse_model_kwargs
from tpcli.errors import TpcliError, UserError
from tpcli.models import load as models
from tpcli.models.load import load_weights, weights_hash
from tpcli.surgery import pooling_spec

SCHEDULE = [50, 40, 30, 20]
NAME = "vit_tiny_patch16_224"


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images(3))


def small(**arguments: Any) -> models.LoadedModel:
    """The architecture of `tiny_vit` through `load`."""
    chosen = {**SMALL, **arguments}
    return load(
        NAME,
        pretrained=False,
        img_size=chosen.pop("img_size"),
        num_classes=chosen.pop("num_classes"),
        model_kwargs=chosen,
    )


def test_pooled_model_survives_saving(tmp_path: Path) -> None:
    model = pool(tiny_vit(global_pool="avg"), SCHEDULE, "ward", iterations=4, position="block")
    save(model, tmp_path / "mine")
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    assert sorted(os.listdir(tmp_path / "mine")) == ["config.json", "model.safetensors"]
    loaded = load(str(tmp_path / "mine"))
    assert loaded.name == "mine"
    spec = pooling_spec(loaded.model)
    assert spec is not None
    assert spec.schedule.tokens == tuple(SCHEDULE)
    assert spec.options == pooling_options("ward", iterations=4, position="block")
    assert torch.equal(logits(loaded.model), logits(model))


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_plain_model_survives_saving(tmp_path: Path, prefix: str) -> None:
    model = tiny_vit()
    save(model, tmp_path / "mine")
    loaded = load(f"{prefix}{tmp_path / 'mine'}")
    assert pooling_spec(loaded.model) is None
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.data_config["input_size"] == (3, 32, 32)


def test_plain_timm_loads_a_pooled_folder_unpooled(tmp_path: Path) -> None:
    model = pool(tiny_vit(global_pool="avg"), SCHEDULE)
    save(model, tmp_path / "mine")
    plain = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True)
    assert torch.equal(logits(plain), logits(unpool(model)))


def test_config_says_how_the_model_is_pooled(tmp_path: Path) -> None:
    save(pool(tiny_vit(), "r:10", "k-medoids"), tmp_path / "mine", note="hello")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["architecture"] == NAME
    assert config["note"] == "hello"
    assert config["token_pooling"]["schedule"] == "r:10"
    assert config["token_pooling"]["tokens"] == [54, 44, 34, 24]
    assert config["token_pooling"]["method"]["method"] == "k-medoids"


def test_saving_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("")
    with pytest.raises(UserError, match="mine"):
        save(tiny_vit(), tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["precious"]
    save(tiny_vit(), tmp_path / "mine", force=True)
    assert sorted(os.listdir(tmp_path / "mine")) == ["config.json", "model.safetensors"]


def test_a_model_that_cannot_be_described_is_not_half_saved(tmp_path: Path) -> None:
    """timm can't write a class into config.json."""
    with pytest.raises(TpcliError, match="block_fn"):
        save(tiny_vit(block_fn="ParallelScalingBlock"), tmp_path / "mine")
    assert os.listdir(tmp_path) == []


def test_weights_that_timm_would_not_know_are_not_saved(tmp_path: Path) -> None:
    model = tiny_vit()
    torch.nn.utils.parametrizations.weight_norm(model.head)
    with pytest.raises(UserError, match=r"head\.parametrizations"):
        save(model, tmp_path / "mine")
    assert os.listdir(tmp_path) == []


def test_the_demo_is_there() -> None:
    loaded = load()
    assert loaded.name == "demo"
    assert loaded.model.num_classes == 10
    assert loaded.data_config["input_size"] == (3, 32, 32)
    assert type(loaded.model).__name__ == "VisionTransformer"
    weights = models.DEMO / "model.safetensors"
    assert weights.stat().st_size < 4_000_000


def test_options_reach_the_architecture() -> None:
    model = small(depth=2, num_classes=7).model
    assert (len(model.blocks), model.num_classes, model.embed_dim) == (2, 7, 48)
    assert model.patch_embed.img_size == (32, 32)


def test_images_are_prepared_at_the_size_that_was_asked_for() -> None:
    loaded = small()
    assert loaded.data_config["input_size"] == (3, 32, 32)
    assert logits(loaded.model).shape == (3, 10)


@pytest.mark.parametrize(
    ("items", "values"),
    [
        (["depth=4", "qk_norm=True"], {"depth": 4, "qk_norm": True}),
        (["global_pool=avg"], {"global_pool": "avg"}),
        (["init_values=1e-5"], {"init_values": 1e-5}),
        (["patch_size=(4, 4)"], {"patch_size": (4, 4)}),
        (["a=b=c"], {"a": "b=c"}),
    ],
)
def test_model_kwargs(items: list[str], values: dict[str, Any]) -> None:
    assert parse_model_kwargs(items) == values


@pytest.mark.parametrize("item", ["depth", "=4", "4=x", "no space=1"])
def test_model_kwargs_that_are_wrong(item: str) -> None:
    with pytest.raises(UserError, match=f"model argument '{item}' is not of the form name=value"):
        parse_model_kwargs([item])


def test_an_argument_that_the_model_does_not_take() -> None:
    with pytest.raises(UserError, match="wings=2"):
        load(NAME, pretrained=False, model_kwargs={"wings": 2})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_checkpoints(tmp_path: Path, suffix: str) -> None:
    source = tiny_vit(seed=5)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(source.state_dict(), file)
    else:
        torch.save(source.state_dict(), file)
    target = tiny_vit(seed=6)
    load_weights(target, file)
    assert torch.equal(logits(target), logits(source))


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
def test_checkpoints_of_training_scripts(tmp_path: Path, key: str) -> None:
    source = tiny_vit(seed=5)
    torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "last.pth.tar")
    target = tiny_vit(seed=6)
    load_weights(target, tmp_path / "last.pth.tar")
    assert torch.equal(logits(target), logits(source))


def test_a_checkpoint_goes_on_top_of_a_name(tmp_path: Path) -> None:
    source = tiny_vit(seed=5)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    chosen = {k: v for k, v in SMALL.items() if k not in ("img_size", "num_classes")}
    loaded = load(
        NAME, checkpoint=tmp_path / "w.pth", img_size=32, num_classes=10, model_kwargs=chosen
    )
    assert torch.equal(logits(loaded.model), logits(source))


class Malicious:
    """Pickled, it would make a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    trap, file = tmp_path / "trap", tmp_path / "evil.pth"
    content = {"head.weight": Malicious(trap)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"evil\.pth"):
        load_weights(tiny_vit(), file)
    assert not trap.exists()
    with file.open("rb") as stream:  # the trap works
        torch.load(stream, weights_only=False) if zipped else pickle.load(stream)
    assert trap.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"this is no checkpoint, however long it may be"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_weights(tiny_vit(), tmp_path / name)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_checkpoint(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"w.{suffix}"
    state = tiny_vit().state_dict()
    torch.save(state, file) if suffix == "pth" else safetensors.torch.save_file(state, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=suffix):
        load_weights(tiny_vit(), file)


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth"):
        load_weights(tiny_vit(), tmp_path / "list.pth")


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    model = tiny_vit()
    state = model.state_dict()
    del state["norm.weight"], state["blocks.2.attn.proj.bias"]
    state["tail.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "odd.pth")
    before = logits(model)
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "odd.pth")
    message = str(caught.value)
    assert "missing blocks.2.attn.proj.bias, norm.weight;" in message
    assert "unexpected tail.weight." in message
    assert torch.equal(logits(model), before)


def test_many_keys_are_cut_short(tmp_path: Path) -> None:
    torch.save({"head.weight": tiny_vit().state_dict()["head.weight"]}, tmp_path / "head.pth")
    expected = len(tiny_vit().state_dict()) - 1 - 8
    with pytest.raises(UserError, match=f"{expected} more"):
        load_weights(tiny_vit(), tmp_path / "head.pth")


def test_shapes_that_differ_are_listed(tmp_path: Path) -> None:
    torch.save(tiny_vit(num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(UserError) as caught:
        load_weights(tiny_vit(), tmp_path / "seven.pth")
    assert "head.weight (7, 48) for (10, 48)" in str(caught.value)
    assert "the number of classes" in str(caught.value)


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth"):
        load_weights(tiny_vit(), tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("deit_tiny_patch16_22", "deit_tiny_patch16_224"),
        ("vit_smal_patch16_224", "vit_small_patch"),
    ],
)
def test_unknown_names_get_near_ones(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*{near}"):
        load(name)


def test_an_unknown_tag_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"fb_in2k.*fb_in1k"):
        load("deit_tiny_patch16_224.fb_in2k")


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18.a1_in1k", "swin_tiny_patch4_window7_224", "mixer_b16_224"]
)
def test_no_vit_is_refused_before_any_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[bool] = []
    create = timm.create_model

    def spy(*args: Any, **kwargs: Any) -> nn.Module:
        created.append(kwargs.get("pretrained", False))
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", spy)
    with pytest.raises(UserError, match=name):
        load(name)
    assert created == [False]


def test_weights_that_cannot_be_fetched_are_one_sentence() -> None:
    """Offline, and in no cache: a failure, not the user's mistake."""
    name = "vit_small_patch32_384.augreg_in21k_ft_in1k"
    with pytest.raises(TpcliError, match=name) as caught:
        load(name)
    assert caught.value.exit_code == 1


def test_a_name_without_weights_says_so() -> None:
    name = "vit_small_patch16_18x2_224"
    with pytest.raises(UserError, match=name):
        load(name)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="is no model folder"):
        load(f"local-dir:{tmp_path / 'gone'}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"could not be loaded|not a readable JSON"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=str(tmp_path.name)):
        load(str(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    save(tiny_vit(), tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="mine"):
        load(str(tmp_path / "mine"))


def test_a_weights_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file; give a folder .* `checkpoint`"):
        load(str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "stored",
    [{}, {"tokens": [5, 4]}, {"tokens": 3, "patch_tokens": 64, "schedule": "", "method": {}}],
)
def test_a_token_pooling_key_that_is_broken(tmp_path: Path, stored: dict[str, Any]) -> None:
    save(tiny_vit(), tmp_path / "mine")
    file = tmp_path / "mine" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "token_pooling": stored}))
    with pytest.raises(UserError, match="token_pooling"):
        load(str(tmp_path / "mine"))


def test_weights_hash_is_of_the_weights() -> None:
    one, same, other = tiny_vit(seed=1), tiny_vit(seed=1), tiny_vit(seed=2)
    assert weights_hash(one) == weights_hash(same)
    assert weights_hash(one) != weights_hash(other)
    assert weights_hash(pool(one, SCHEDULE)) == weights_hash(same)
    with torch.no_grad():
        same.head.bias[0] += 1e-6
    assert weights_hash(one) != weights_hash(same)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("demo", "demo"),
        ("hf-hub:org/model", "model"),
        ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_base_names(spec: str, name: str) -> None:
    assert base_name(spec) == name
