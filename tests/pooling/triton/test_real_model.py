"""What rounding costs: kernels against operators in bfloat16, in a pretrained model.

The model and its images lie beside the project and are not part of it. Without a card:

    TRITON_INTERPRET=1 pytest -m slow tests/pooling/triton
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcli import load, pool
from tpcli.data import batches, create
from tpcli.pooling import reconstruction_loss
from tpcli.pooling.backends import triton
from tpcli.pooling.clusters import number_by_operators
from tpcli.pooling.ward import ward_by_operators

SHARED = Path(__file__).parents[4] / "shared"
MODEL = SHARED / "models" / "deit_tiny_cifar10"
DATA = SHARED / "data" / "cifar10"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"the real model is not there: {MODEL}"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the real images are not there: {DATA}"),
]


class Recorded:
    """`triton.ward_labels`, with the reconstruction loss of its clusters and of the operators'."""

    def __init__(self) -> None:
        self.run = triton.ward_labels
        self.found = self.expected = 0.0

    def __call__(
        self, z: Tensor, sizes: Tensor, count: int, plan: list[int], normalized: bool
    ) -> Any:
        found = self.run(z, sizes, count, plan, normalized)
        if found is not None:
            labels = found[0]
            others = ward_by_operators(z.float(), sizes, count, plan, normalized)
            self.found += loss(z, labels, sizes)
            self.expected += loss(z, others, sizes)
        return found


def loss(z: Tensor, labels: Tensor, sizes: Tensor) -> float:
    exact = F.layer_norm(z.float(), z.shape[-1:])
    clusters = number_by_operators(labels, len(labels[0].unique()))
    return float(reconstruction_loss(exact, clusters, sizes).sum())


def test_rounding_changes_no_answer(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(str(MODEL))
    data = create(str(DATA), loaded.data_config, limit=64)
    pixels, _ = next(batches(data, 64))
    model = pool(loaded.model, "r:4").to(device, torch.bfloat16).eval()
    batch = data.normalize(pixels).to(device, torch.bfloat16)
    recorded = Recorded()
    monkeypatch.setattr(triton, "ward_labels", recorded)
    with torch.inference_mode():
        by_kernels = model(batch).float()
        monkeypatch.setattr(triton, "AVAILABLE", False)
        by_operators = model(batch).float()
    ratio = recorded.found / recorded.expected
    apart = (by_kernels - by_operators).abs().max()
    same = (by_kernels.argmax(1) == by_operators.argmax(1)).sum()
    print(f"loss {ratio:.5f} of the operators', logits differ by {apart:.4f} at most, {same} same")
    assert same == 64
    assert abs(ratio - 1) < 0.01
