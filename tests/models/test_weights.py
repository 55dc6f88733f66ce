"""Checkpoint files: what scripts keep around weights, heads kept apart, tensors of odd kinds."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.models import tiny_vit
from tpcli.errors import UserError
from tpcli.models.weights import load_weights

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> State:
    return dict(tiny_vit(seed=5).state_dict())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def only_head(state: State, name: str = "head") -> State:
    return {f"{name}.weight": state["head.weight"], f"{name}.bias": state["head.bias"]}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


PREFIXES = [
    "model.",
    "net.",
    "encoder.",
    "module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.backbone.",
    "base_model.model.",
    "student.vit.",
    "visual.trunk.",
    "timm_model.",
    "_forward_module.model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix(tmp_path: pathlib.Path, weights: State, prefix: str) -> None:
    assert_loads({"state_dict": prefixed(weights, prefix), "epoch": 1}, weights, tmp_path)


def chunked(state: State, size: int, from_zero: bool = False) -> State:
    """Blocks in chunks, which number them through (DINOv2) or each from 0."""

    def name(key: str) -> str:
        kind, index, rest = (key + "..").split(".", 2)
        if kind != "blocks":
            return key
        chunk, place = divmod(int(index), size)
        return f"blocks.{chunk}.{place if from_zero else index}.{rest[:-2]}"

    return {name(key): value for key, value in state.items()}


TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm.": "encoder.ln.",
    "head.": "heads.head.",
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attn.qkv.": ".self_attention.in_proj_",
    ".attn.proj.": ".self_attention.out_proj.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.3.",
    "blocks.": "encoder.layers.encoder_layer_",
}


def as_torchvision(state: State, older: bool = False) -> State:
    renamed = {}
    for key, value in state.items():
        for old, new in TORCHVISION.items():
            key = key.replace(old, new) if old[0] == "." or key.startswith(old) else key
        if older:
            key = key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
        renamed[key] = value
    return renamed


DECODER = {
    "mask_token": torch.ones(1, 1, 16),
    "decoder_pos_embed": torch.ones(1, 65, 16),
    "decoder_embed.weight": torch.ones(16, 48),
    "decoder_blocks.0.attn.qkv.weight": torch.ones(48, 16),
    "decoder_pred.bias": torch.ones(48),
}

LAYOUTS: dict[str, Callable[[State], Any]] = {
    "model_state_dict": lambda s: {"model_state_dict": s, "epoch": 1, "loss": 0.3},
    "deep": lambda s: {"run": {"best": [{"net": s}]}},
    "a tuple": lambda s: (s, {"lr": 0.1}),
    "average of torch": lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(5)},
    "average in a dict": lambda s: {"model": zeros(s), "ema": {"decay": 0.9, "module": s}},
    "average first": lambda s: {"ema_model": s, "model": zeros(s)},
    "average under a prefix": lambda s: prefixed(zeros(s), "model.") | prefixed(s, "model_ema."),
    "teacher": lambda s: {"student": prefixed(zeros(s), "backbone."), "teacher": s},
    "with its optimizer": lambda s: {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}, "a": {"step": torch.ones(())}}},
        "net": s,
    },
    "beside a decoder": lambda s: (
        prefixed(s, "encoder.") | {"decoder.blocks.0.attn.qkv.weight": torch.ones(3)}
    ),
    "head under the prefix": lambda s: prefixed(s, "backbone.") | {"head.last": torch.ones(2)},
    "head beside": lambda s: prefixed(without_head(s), "backbone.") | only_head(s),
    "classifier beside": lambda s: (
        prefixed(without_head(s), "backbone.") | only_head(s, "classifier")
    ),
    "fc beside": lambda s: prefixed(without_head(s), "net.encoder.") | only_head(s, "net.fc"),
    "head after dropout": lambda s: (
        prefixed(without_head(s), "backbone.") | only_head(s, "classifier.1")
    ),
    "head without prefix": lambda s: without_head(s) | only_head(s, "linear_head"),
    "head in a dict": lambda s: {"backbone": without_head(s), "fc": only_head(s)},
    "head and projector": lambda s: (
        prefixed(without_head(s), "backbone.")
        | only_head(s, "classifier")
        | {"projector.0.weight": torch.ones(96, 48), "projector.0.bias": torch.ones(96)}
        | {"projector.2.weight": torch.ones(96, 96), "projector.2.bias": torch.ones(96)}
    ),
    "NumPy": lambda s: {"model": s, "best": np.float64(82.4), "per_class": np.ones((3, 2))},
    "NumPy of other kinds": lambda s: {
        "model": s,
        "step": np.int64(3),
        "flag": np.bool_(True),
        "half": np.float16(0.5),
        "rows": np.array([1, 2], np.uint8),
    },
    "paths": lambda s: {
        "model": s,
        "out": pathlib.Path("/x"),
        "pure": pathlib.PurePosixPath("a/b"),
        "windows": pathlib.PureWindowsPath("c:/x"),
    },
    "options": lambda s: {
        "model": s,
        "args": argparse.Namespace(out=pathlib.Path("/x"), acc=np.float32(1)),
    },
    "in chunks": lambda s: chunked(s, 2),
    "in chunks from 0": lambda s: chunked(s, 2, from_zero=True),
    "in one chunk": lambda s: chunked(s, 4),
    "in chunks of a teacher": lambda s: {
        "student": prefixed(chunked(zeros(s), 2), "backbone."),
        "teacher": prefixed(chunked(s, 2), "backbone.") | {"dino_head.w": torch.ones(2)},
    },
    "in chunks under Lightning": lambda s: {
        "state_dict": prefixed(chunked(zeros(s), 2), "student.vit.")
        | prefixed(chunked(s, 2), "teacher.vit."),
        "hyper_parameters": {"lr": 0.1},
    },
    "with a decoder": lambda s: {"model": s | DECODER},
    "with a decoder under a prefix": lambda s: prefixed(s | DECODER, "module.backbone."),
    "with a masked embedding": lambda s: s | {"masked_embed": torch.ones(1, 48)},
    "with a language head": lambda s: (
        s | {"mask_token": torch.ones(1, 1, 48), "lm_head.bias": torch.ones(5)}
    ),
    "names of torchvision": as_torchvision,
    "older names of torchvision": lambda s: {
        "model": prefixed(as_torchvision(s, older=True), "module.")
    },
    "average of torchvision's script": lambda s: {
        "model": as_torchvision(zeros(s)),
        "model_ema": prefixed(as_torchvision(s), "module.") | {"n_averaged": torch.tensor(3)},
    },
    "EMA in capitals": lambda s: {"model": zeros(s), "EMA": s},
    "parameters": lambda s: {key: nn.Parameter(value) for key, value in s.items()},
    "float64": lambda s: {key: value.double() for key, value in s.items()},
}


def assert_loads(content: Any, expected: State, folder: pathlib.Path) -> None:
    torch.save(content, folder / "w.pth")
    model = tiny_vit(seed=6)
    load_weights(model, folder / "w.pth")
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_scripts(tmp_path: pathlib.Path, weights: State, layout: str) -> None:
    assert_loads(LAYOUTS[layout](weights), weights, tmp_path)


def test_a_head_kept_apart_brings_its_classes(tmp_path: pathlib.Path, weights: State) -> None:
    head = {"classifier.weight": torch.ones(4, 48), "classifier.bias": torch.ones(4)}
    torch.save(prefixed(without_head(weights), "backbone.") | head, tmp_path / "w.pth")
    model = tiny_vit()
    load_weights(model, tmp_path / "w.pth", adapt_head=True)
    assert model.num_classes == 4
    assert torch.equal(model.head.weight, head["classifier.weight"])


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"projector.weight": torch.ones(96, 48), "projector.bias": torch.ones(96)},
        {"head.fc1.weight": torch.ones(96, 48), "head.fc1.bias": torch.ones(96)},
        {f"{n}.{p}": torch.ones(10, 48)[..., i] for n in "ab" for i, p in enumerate(["bias"])},
        only_head({"head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)}, "a")
        | only_head({"head.weight": torch.ones(10, 48), "head.bias": torch.ones(10)}, "b"),
        only_head({"head.weight": torch.ones(10, 96), "head.bias": torch.ones(10)}, "fc"),
    ],
    ids=["none", "projector", "one of several", "no weight", "two", "other channels"],
)
def test_no_head_is_guessed(tmp_path: pathlib.Path, weights: State, beside: State) -> None:
    torch.save(prefixed(without_head(weights), "backbone.") | beside, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"head\.bias, head\.weight"):
        load_weights(tiny_vit(), tmp_path / "w.pth")


def cyclic(state: State) -> Any:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content
    return content


def cyclic_around_weights(state: State) -> Any:
    return cyclic(state) | {"net": state}


def nested(depth: int) -> Any:
    content: Any = {}
    for _ in range(depth):
        content = {"model": content}
    return content


def changed(key: str, value: Tensor) -> Callable[[State], Any]:
    return lambda s: {**s, key: value}


W = "head.weight"
ODD: dict[str, tuple[Callable[[State], Any], str]] = {
    "cyclic": (cyclic, "holds no state_dict"),
    "deep": (lambda _: nested(200), "holds no state_dict"),
    "empty": (lambda _: {}, "holds no state_dict"),
    "a tensor": (lambda _: torch.ones(3), "holds no state_dict"),
    "names are numbers": (lambda _: {0: torch.ones(3)}, "holds no state_dict"),
    "sparse": (changed(W, torch.ones(10, 48).to_sparse()), f"{W} is a sparse tensor"),
    "csr": (changed(W, torch.ones(10, 48).to_sparse_csr()), f"{W} is a sparse tensor"),
    "meta": (changed(W, torch.ones(10, 48, device="meta")), f"{W} is a meta tensor"),
    "quantized": (
        changed(W, torch.quantize_per_tensor(torch.ones(10, 48), 0.1, 0, torch.qint8)),
        f"{W} is a quantized tensor",
    ),
    "0-dim": (changed(W, torch.tensor(1.0)), r"head\.weight \(\) for \(10, 48\)"),
    "one dimension": (changed(W, torch.ones(48)), r"head\.weight \(48,\) for"),
    "0-dim positions": (changed("pos_embed", torch.tensor(1.0)), "does not fit"),
    "odd positions": (changed("pos_embed", torch.ones(1, 7, 48)), "does not fit"),
    "0-dim patches": (changed("patch_embed.proj.weight", torch.tensor(1.0)), "does not fit"),
    "integers": (changed(W, torch.ones(10, 48, dtype=torch.int8)), r"head\.weight torch\.int8"),
    "booleans": (changed("norm.bias", torch.ones(48) > 0), r"norm\.bias torch\.bool"),
    "complex": (changed("norm.bias", torch.ones(48) * 1j), r"norm\.bias torch\.complex64"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_refused(tmp_path: pathlib.Path, weights: State, kind: str) -> None:
    make, message = ODD[kind]
    torch.save(make(weights), tmp_path / "odd.pth")
    model = tiny_vit(seed=6)
    with pytest.raises(UserError, match=f"checkpoint .*odd.pth .*{message}"):
        load_weights(model, tmp_path / "odd.pth", adapt_head=True)
    before = tiny_vit(seed=6).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_inside_a_circle_are_found(tmp_path: pathlib.Path, weights: State) -> None:
    assert_loads(cyclic_around_weights(weights), weights, tmp_path)


def test_tensors_that_repeat_one_number(tmp_path: pathlib.Path, weights: State) -> None:
    stretched = {**weights, W: torch.tensor(2.0).expand(10, 48)}
    assert_loads(stretched, stretched, tmp_path)


def test_a_folder_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="folder"):
        load_weights(tiny_vit(), tmp_path)


def test_registers_and_chunks_of_dinov2(tmp_path: pathlib.Path) -> None:
    """Positions of the class token are added to it; registers have none; SwiGLU has one matrix."""
    model = tiny_vit("vit_small_patch14_reg4_dinov2", mlp_ratio=4.0, seed=5)
    state = dict(model.state_dict())
    original = {
        key.replace("reg_token", "register_tokens"): value
        for key, value in chunked(state, 2).items()
    }
    zero = torch.zeros(1, 1, 48)
    original["pos_embed"] = torch.cat([zero, state["pos_embed"]], dim=1)
    for mask in ({"mask_token": torch.ones(1, 48)}, {}):
        torch.save({"teacher": prefixed(original | mask, "backbone.")}, tmp_path / "w.pth")
        fresh = tiny_vit("vit_small_patch14_reg4_dinov2", mlp_ratio=4.0, seed=6)
        load_weights(fresh, tmp_path / "w.pth")
        assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_pretraining_leftovers_of_other_classes(tmp_path: pathlib.Path, name: str) -> None:
    state = dict(tiny_vit(name, seed=5).state_dict())
    torch.save({"model": state | {"mask_token": torch.ones(1, 1, 48)}}, tmp_path / "w.pth")
    model = tiny_vit(name, seed=6)
    load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_without_a_head_says_how_to_load_it(
    tmp_path: pathlib.Path, weights: State
) -> None:
    torch.save({"model": without_head(weights) | DECODER}, tmp_path / "mae.pth")
    with pytest.raises(UserError, match=r"head\.bias.*0"):
        load_weights(tiny_vit(), tmp_path / "mae.pth")
    model = tiny_vit(num_classes=0)
    load_weights(model, tmp_path / "mae.pth")
    assert torch.equal(model.cls_token, weights["cls_token"])
