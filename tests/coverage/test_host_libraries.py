"""Models of other libraries that contain a timm ViT, with random weights (docs/embedded.md)."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tpcli
from tests.helpers.models import images

pytestmark = pytest.mark.third_party

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
}
NAME, SCHEDULE = "vit_tiny_patch16_224", "tokens:20,9"


def traced(vit: nn.Module, run: Any) -> list[int]:
    """How many tokens are left after each block that pools, in one run of the model around it."""
    with torch.no_grad(), tpcli.trace(vit) as found:
        run()
    return [len(source[0].unique()) for source in found.sources]


def test_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    vision = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": ""}
    text = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    clip = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    x = images(2, 160)
    with torch.no_grad():
        before = clip.encode_image(x)
        assert tpcli.find(clip) is clip.visual.trunk
        tpcli.pool(clip, "r:4")
        kept = traced(clip.visual.trunk, lambda: clip.encode_image(x))
        assert kept == [96, 92, 88, 84, 80, 76]
        pooled = clip.encode_image(x)
        tpcli.unpool(clip.visual.trunk)
        assert torch.equal(clip.encode_image(x), before)
    assert pooled.shape == before.shape == (2, 24)
    assert not torch.equal(pooled, before)


def test_timm_wrapper_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture=NAME, model_args=SMALL, num_labels=5)
    model = transformers.TimmWrapperForImageClassification(config).eval()
    assert tpcli.find(model) is model.timm_model
    tpcli.pool(model, SCHEDULE)
    found = traced(model.timm_model, lambda: model(pixel_values=images()))
    assert found == [20, 9]
    assert model(pixel_values=images()).logits.shape == (2, 5)


def test_wrapper_that_reads_all_tokens() -> None:
    """Its `last_hidden_state` has a token for each cluster; a trace says where each patch went."""
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(architecture=NAME, model_args=SMALL)
    model = transformers.TimmWrapperModel(config).eval()
    tpcli.pool(model.timm_model, SCHEDULE)
    with torch.no_grad(), tpcli.trace(model.timm_model) as found:
        tokens: Tensor = model(pixel_values=images()).last_hidden_state
    assert tokens.shape[1] == 1 + 9
    index = found.sources[-1].unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    assert tokens[:, 1:].gather(1, index).shape == (2, 64, 48)


def test_lightning_module() -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Classifier(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = timm.create_model(NAME, num_classes=0, **SMALL)
            self.head = nn.Linear(48, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.backbone(x))
            return logits

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Classifier()
    keys = list(module.state_dict())
    assert tpcli.find(module) is module.backbone
    tpcli.pool(module, SCHEDULE)
    assert list(module.state_dict()) == keys
    before = module.backbone.blocks[0].attn.qkv.weight.clone()
    data = torch.utils.data.TensorDataset(images(4), torch.tensor([0, 1, 2, 0]))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    assert not torch.equal(module.backbone.blocks[0].attn.qkv.weight, before)
    assert traced(module.backbone, lambda: module(images())) == [20, 9]


def test_lora_of_peft() -> None:
    peft = pytest.importorskip("peft")
    vit = timm.create_model(NAME, num_classes=5, **SMALL)
    model = peft.get_peft_model(vit, peft.LoraConfig(target_modules=["qkv"], r=4))
    base = model.get_base_model()
    tpcli.pool(base, SCHEDULE)
    assert traced(base, lambda: model(images())) == [20, 9]
    model(images()).sum().backward()
    adapters = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapters)
    merged = model.merge_and_unload()
    assert traced(merged, lambda: merged(images())) == [20, 9]
