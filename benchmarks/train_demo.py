"""Train the demo's weights: 5 minutes on 2 cores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader

from tpcli import data
from tpcli.demo import IMAGE_SIZE, Digits
from tpcli.evaluation.run import evaluate
from tpcli.models.save import save

EPOCHS = 120
ARCHITECTURE: dict[str, Any] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 8,
    "num_heads": 3,
    "num_classes": 10,
}
CONFIG: dict[str, Any] = {
    "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def main(out: Path) -> None:
    """Train from scratch on the training split and write a model folder."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.1, **ARCHITECTURE)
    pretrained_cfg: Any = model.pretrained_cfg
    model.pretrained_cfg = {**pretrained_cfg, **CONFIG, "license": "apache-2.0"}  # type: ignore[assignment]
    transform = create_transform(
        **CONFIG,
        is_training=True,
        scale=(0.6, 1.0),
        ratio=(0.8, 1.25),
        hflip=0.0,
        auto_augment="rand-m5-n2",
        re_prob=0.25,
    )
    loader = DataLoader(Digits("train", transform), batch_size=100, shuffle=True, drop_last=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=EPOCHS, warmup_t=5, warmup_lr_init=1e-5)
    validation = data.create("demo", CONFIG)
    for epoch in range(EPOCHS):
        scheduler.step(epoch)
        model.train()
        for images, targets in loader:
            loss = F.cross_entropy(model(images), targets, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (epoch + 1) % 10 == 0:
            result = evaluate(model, validation, device="cpu")
            print(f"epoch {epoch + 1}: loss {loss:.3f}, validation top-1 {result.top1:.2f}")
    save(model.eval(), out, force=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    main(parser.parse_args().out)
