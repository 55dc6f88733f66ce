"""Folders and repositories of Hugging Face: transformers' ViT, its wrapper of timm, the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from tests.helpers.models import SMALL, images, scramble, tiny_vit
from tpcli import load, pool, save
from tpcli.errors import TpcliError, UserError
from tpcli.models.load import weights_hash
from tpcli.surgery import pooling_spec

SCHEDULE = [50, 40, 30, 20]
VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "id2label": {str(i): f"label {i}" for i in range(10)},
}
THEIRS = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "blocks": "vit.encoder.layer",
}


def as_transformers_has_it(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if ".qkv." in key:
            block, kind = key.split(".")[1], key.split(".")[-1]
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                layer = f"vit.encoder.layer.{block}.attention.attention.{name}"
                state[f"{layer}.{kind}"] = part.clone()
            continue
        for ours, theirs in THEIRS.items():
            key = key.replace(ours, theirs)
        key = key.replace("head.", "classifier.")
        state[f"vit.layernorm.{key[5:]}" if key.startswith("norm.") else key] = value.clone()
    return state


def folder_of(path: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(state, path / "model.safetensors")
    return path


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(images(3))


def test_a_vit_of_transformers_becomes_timms(tmp_path: Path) -> None:
    model = tiny_vit()
    folder = folder_of(tmp_path / "vit", VIT, as_transformers_has_it(model))
    loaded = load(str(folder))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.model.pretrained_cfg["label_names"][3] == "label 3"
    assert loaded.data_config["mean"] == (0.5, 0.5, 0.5)
    assert loaded.data_config["crop_pct"] == 1.0
    save(pool(loaded.model, SCHEDULE), tmp_path / "ours")
    again = load(str(tmp_path / "ours"))
    assert torch.equal(logits(again.model), logits(loaded.model))
    assert again.data_config == loaded.data_config


def test_its_own_way_to_prepare_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "vit", VIT, as_transformers_has_it(tiny_vit()))
    chosen = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(chosen))
    config = load(str(folder)).data_config
    assert (config["mean"], config["std"]) == ((0.1, 0.2, 0.3), (1, 2, 3))
    assert config["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "swin"}, "'swin' model of transformers.*use a model of type timm_wrapper"),
        ({"model_type": "deit"}, "'deit' model of transformers"),
        ({"hidden_act": "mish"}, "no hidden_act 'mish'"),
        ({"layer_norm_eps": 0.1}, r"layer_norm_eps 0\.1 is larger"),
        ({"hidden_size": None}, "describes no vit model"),
        ({"hidden_size": "wide"}, "describes no vit model"),
        ({"num_hidden_layers": 3}, r"does not fit: missing none; unexpected blocks\.3"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = folder_of(tmp_path / "vit", VIT | change, as_transformers_has_it(tiny_vit()))
    with pytest.raises(UserError, match=message):
        load(str(folder))


def test_weights_in_several_files_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "vit", VIT, {})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(str(folder))


@pytest.mark.parametrize("head", [True, False])
def test_against_transformers_itself(tmp_path: Path, head: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**{k: v for k, v in VIT.items() if k != "architectures"})
    kind = transformers.ViTForImageClassification if head else transformers.ViTModel
    theirs = scramble(kind(config)).eval()
    theirs.save_pretrained(tmp_path / "vit")
    ours = load(str(tmp_path / "vit")).model.eval()
    with torch.no_grad():
        out = theirs(images(3))
        expected = out.logits if head else out.last_hidden_state[:, 0]
        torch.testing.assert_close(ours(images(3)), expected, rtol=0, atol=1e-4)


def wrapper() -> Any:
    transformers = pytest.importorskip("transformers")
    arguments = {k: v for k, v in SMALL.items() if k != "num_classes"}
    config = transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", num_labels=10, model_args=arguments
    )
    return transformers.TimmWrapperForImageClassification(config)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_wrapper_keeps_its_pooling(tmp_path: Path, pooled: bool) -> None:
    model = wrapper()
    scramble(model.timm_model)
    if pooled:
        pool(model, SCHEDULE, "k-means")
    model.save_pretrained(tmp_path / "wrapped")
    loaded = load(str(tmp_path / "wrapped")).model
    assert pooling_spec(loaded) == pooling_spec(model.timm_model)
    assert torch.equal(logits(loaded), logits(model.timm_model))


def test_a_wrapper_that_is_unpooled_again_forgets_it(tmp_path: Path) -> None:
    from tpcli import unpool

    model = wrapper()
    pool(model, SCHEDULE)
    model.save_pretrained(tmp_path / "pooled")
    unpool(model.timm_model)
    model.save_pretrained(tmp_path / "plain")
    assert pooling_spec(load(str(tmp_path / "plain")).model) is None
    again = type(model).from_pretrained(tmp_path / "pooled")
    assert weights_hash(again.timm_model) == weights_hash(model.timm_model)


def test_a_wrapper_without_transformers(tmp_path: Path) -> None:
    arguments = {k: v for k, v in SMALL.items() if k != "num_classes"}
    config = {
        "model_type": "timm_wrapper",
        "architecture": "vit_tiny_patch16_224",
        "architectures": ["TimmWrapperForImageClassification"],
        "num_classes": 10,
        "label_names": [f"LABEL_{i}" for i in range(10)],
        "model_args": arguments,
    }
    model = tiny_vit()
    state = {f"timm_model.{k}": v for k, v in model.state_dict().items()}
    folder = folder_of(tmp_path / "wrapped", config, state)
    loaded = load(str(folder)).model
    assert torch.equal(logits(loaded), logits(model))
    assert not loaded.pretrained_cfg.get("label_names")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], str]:
    """Put a model into a cache of the hub, offline; its spec."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def push(model: nn.Module) -> str:
        repository = cache / "models--me--mine"
        save(model, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        return "hf-hub:me/mine"

    return push


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_pooled_model_of_the_hub_loads_pooled(
    hub: Callable[[nn.Module], str], prefix: str
) -> None:
    model = pool(tiny_vit(), SCHEDULE, "k-means", iterations=2)
    loaded = load(hub(model).replace("hf-hub:", prefix))
    assert pooling_spec(loaded.model) == pooling_spec(model)
    assert torch.equal(logits(loaded.model), logits(model))


def test_a_plain_model_of_the_hub_loads_plain(hub: Callable[[nn.Module], str]) -> None:
    assert pooling_spec(load(hub(tiny_vit())).model) is None


def test_a_model_of_transformers_on_the_hub_is_told_where_to_go(
    hub: Callable[[nn.Module], str], tmp_path: Path
) -> None:
    spec = hub(tiny_vit())
    (file,) = tmp_path.glob("hub/*/snapshots/*/config.json")
    file.write_text(json.dumps(VIT))
    with pytest.raises(UserError, match="transformers"):
        load(spec)


def test_a_model_that_the_hub_has_not() -> None:
    with pytest.raises(TpcliError, match="could not be fetched"):
        load("hf-hub:me/no-such-model")


def test_broken_local_weights_do_not_blame_the_connection(tmp_path: Path) -> None:
    save(tiny_vit(), tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="mine") as caught:
        load(str(tmp_path / "mine"))
    assert "connection" not in str(caught.value)


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="describes no model"):
        load(str(tmp_path))


def stored(**changes: Any) -> dict[str, Any]:
    spec = pooling_spec(pool(tiny_vit(), SCHEDULE))
    assert spec is not None
    return {**spec.to_dict(), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "tpcli-pooling/99"},
        {"format": None},
        {"tokens": [50.0, 40, 30, 20]},
        {"tokens": [True, 1, 1, 1]},
        {"tokens": "none"},
        {"tokens": [50, 40, 30]},
        {"tokens": [20, 30, 40, 50]},
        {"tokens": [0] * 4},
        {"patch_tokens": 64.5},
        {"patch_tokens": True},
        {"patch_tokens": float("nan")},
        {"patch_tokens": float("inf")},
        {"patch_tokens": "64"},
        {"schedule": 3},
        {"method": "ward"},
        {"method": []},
        {"method": {"method": "nope"}},
        {"method": {"method": "k-means", "iterations": float("nan")}},
        {"method": {"method": "k-means", "iterations": True}},
        {"method": {"method": "ward", "metric": 3}},
        {"method": {"method": "ward", "colour": 3}},
    ],
    ids=str,
)
def test_a_pooling_that_is_not_as_it_was_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    save(tiny_vit(), tmp_path / "mine")
    file = tmp_path / "mine" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "token_pooling": stored(**changes)}))
    with pytest.raises(UserError):
        load(str(tmp_path / "mine"))


@pytest.mark.parametrize("value", [3, [], "r:10", True])
def test_a_pooling_of_another_kind(tmp_path: Path, value: Any) -> None:
    save(tiny_vit(), tmp_path / "mine", token_pooling=value)
    with pytest.raises(UserError, match="token_pooling"):
        load(str(tmp_path / "mine"))


def test_hash_of_weights_of_all_kinds() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = weights_hash(model)
    model[1].num_batches_tracked += 1
    assert weights_hash(model) != before
    whole = nn.Linear(4, 8)
    view = nn.Linear(4, 4)
    view.weight = nn.Parameter(whole.weight[::2])
    view.bias = nn.Parameter(whole.bias[::2])
    same = nn.Linear(4, 4)
    same.load_state_dict(view.state_dict())
    assert weights_hash(view) == weights_hash(same)
    assert weights_hash(same.bfloat16()) != weights_hash(view)
    assert weights_hash(timm.create_model("vit_tiny_r_s16_p8_224", depth=1))
