"""What a schedule does to a model, as one number, measured without labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcli.errors import TpcliError
from tpcli.measures.answers import features_of, logits_of
from tpcli.options import PoolingOptions
from tpcli.pooling.distance import squared_distances
from tpcli.processes import gathered, share
from tpcli.schedule import Schedule, Tokens
from tpcli.surgery import PoolingSpec, TokenPooling, insert, pooling_spec, unpool
from tpcli.surgery.geometry import patch_tokens
from tpcli.surgery.head import last_pooling_is_free


class Damage:
    """Mean over calibration images of what pooling changes, for one schedule after another.

    by "kl": KL divergence from the unpooled model's class probabilities to the pooled model's.
    by "similarity": how much the cosine between the features of both falls short of 1.
    by "reconstruction": the loss that Token Pooling minimises (Marin et al.), summed over
    blocks: sum_i s_i min_k ||z_i - c_k||^2 between layer-normalised tokens before and after.

    images: normalised batches on the model's device. The model, which has to be in eval mode, is
    pooled and unpooled in turn. together: whether the processes that were started for one command
    run over a share of the images each; all then ask for the same, and have the damage to all.
    """

    def __init__(
        self,
        model: nn.Module,
        options: PoolingOptions,
        images: Sequence[Tensor],
        by: str,
        *,
        together: bool = False,
    ) -> None:
        self._model = unpool(model)
        self._options = options
        self._patch_tokens = patch_tokens(model)
        own = _share(images) if together else None
        self._is_dealt = own is not None
        self._images = images if own is None else own
        self._by = by
        self._losses: list[Tensor] = []
        with torch.inference_mode():
            self._wanted = [self._said(batch) for batch in self._images]

    def under(self, options: PoolingOptions) -> Damage:
        """The damage on the same images of pooling in another way."""
        other = copy.copy(self)
        other._options = options
        return other

    def of(self, tokens: Tokens) -> float:
        """Damage done by one schedule: the mean over all images."""
        return float(self.each(tokens).mean())

    def each(self, tokens: Tokens) -> Tensor:
        """Damage done by one schedule to each of M images: (M,) float64, on the CPU."""
        found: list[Tensor] = []
        insert(self._model, PoolingSpec(Schedule(tokens, self._patch_tokens), self._options))
        try:
            with torch.inference_mode(), self._watching_layers():
                for batch, wanted in zip(self._images, self._wanted, strict=True):
                    said = self._said(batch)
                    if self._by == "kl":
                        terms = F.kl_div(said, wanted, log_target=True, reduction="none")
                        self._losses = [terms.sum(-1)]
                    elif self._by == "similarity":
                        self._losses = [1 - F.cosine_similarity(said, wanted, dim=-1)]
                    none = torch.zeros(len(batch), dtype=torch.float64)
                    found.append(sum((loss.cpu().double() for loss in self._losses), none))
                    self._losses.clear()
        finally:
            unpool(self._model)
        damages = torch.cat(found)
        if self._is_dealt:
            damages = torch.cat(gathered(damages))
        if not bool(damages.isfinite().all()):
            raise TpcliError("the model's output is not finite; check its weights.")
        return damages

    def _said(self, batch: Tensor) -> Tensor:
        """Log probabilities, or features: (B, D)."""
        if self._by == "kl":
            return logits_of(self._model, batch).float().log_softmax(-1)
        return features_of(self._model, batch).float()

    @contextmanager
    def _watching_layers(self) -> Iterator[None]:
        """Collect the reconstruction loss of each pooling layer while it runs."""
        spec, blocks = pooling_spec(self._model), list(self._model.blocks)  # type: ignore[arg-type]
        if spec is not None and last_pooling_is_free(self._model, spec.options.position):
            blocks.pop()  # what is lost there, nobody reads
        layers = [m for block in blocks for m in block.modules() if isinstance(m, TokenPooling)]
        hooks = [
            layer.register_forward_hook(self._collect)
            for layer in layers
            if self._by == "reconstruction"
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _collect(self, layer: TokenPooling, inputs: tuple[Any, ...], outputs: Any) -> None:
        before, after = (
            F.layer_norm(tokens[:, layer.prefix_tokens :].float(), tokens.shape[-1:])
            for tokens in (inputs[0], outputs[0])
        )
        nearest = squared_distances(before, after).amin(-1)  # (B, N)
        self._losses.append((nearest if inputs[1] is None else nearest * inputs[1]).sum(1))


def _share(images: Sequence[Tensor]) -> list[Tensor] | None:
    """This process's part of the images, in batches as large; None where nothing is dealt out."""
    mine = share(sum(map(len, images)))
    if mine is None:
        return None
    return list(torch.cat(list(images))[mine.start : mine.stop].split(len(images[0])))
