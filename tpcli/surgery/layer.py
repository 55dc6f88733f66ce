"""The pooling layer inside a block, and the tokens that travel between pooled blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tpcli.config.options import SCORES, PoolingOptions
from tpcli.errors import TpcliError
from tpcli.pooling import Assignment, Clusters, get_method, merge_tokens
from tpcli.pooling.clusters import medoids_near_mean

from .attention import AttentionInputs, KeyBias, patch_scores
from .dense import Patches, merged_patches, stand_ins
from .families import Family
from .geometry import POOLING_NAME, tokens_left
from .patching import call_original
from .positions import follow, mean_rotations
from .state import THREAD, Attending, BlockRun, Merge

LEAST_WEIGHT = 1e-30
"""Clustering weight of a token that attention passes over."""


class PooledTokens(NamedTuple):
    """What one pooled block hands to the next.

    Sizes travel with the tokens, not on the model: blocks that are run again (gradient
    checkpointing) or by several callers see what belongs to their input.

    x: (B, P + N, C) prefix and patch tokens. sizes: (B, N) float32, None before anything is pooled.
    source: (B, N_0) the token that stands for each patch, K for a dropped one; None in models that
    don't ask for positions inside their blocks. patches: None unless dense features are asked for.
    """

    x: Tensor
    sizes: Tensor | None
    source: Tensor | None = None
    patches: Patches | None = None


class TokenPooling(nn.Module):
    """Turns N patch tokens into K inside one block; has no parameters and no persistent buffers."""

    projection: Tensor | None

    def __init__(
        self,
        options: PoolingOptions,
        family: Family,
        *,
        tokens_in: int,
        tokens_out: int,
        prefix_tokens: int,
        channels: int,
        class_token: bool,
        grid: tuple[int, int],
        depth: float,
        follows_positions: bool = False,
    ) -> None:
        super().__init__()
        self.options = options
        self.method = get_method(options.method)
        # a method that may need only some tokens normalized does it itself, where nobody else does
        self.normalizes = options.metric == "normalized" and (
            "normalized" not in self.method.keywords
            or options.metric_dim is not None
            or options.reduce == "medoid"
        )
        self.class_token = class_token
        self.grid = grid
        self.depth = depth
        self.family = family
        self.tokens_in = tokens_in
        self.tokens_out = tokens_out
        self.prefix_tokens = prefix_tokens
        self.follows_positions = follows_positions
        self._hooks: list[RemovableHandle] = []
        self.is_hooked = False  # beside the hooks, which torch.compile can't look at
        projection = None
        if options.metric_dim is not None:
            # random signs (Achlioptas, 2003), whole numbers, which model.half() leaves alone
            generator = torch.Generator("cpu").manual_seed(0)
            shape = (channels, options.metric_dim)
            coins = torch.randint(2, shape, generator=generator, dtype=torch.int8, device="cpu")
            projection = 2 * coins - 1
        self.register_buffer("projection", projection, persistent=False)

    def extra_repr(self) -> str:
        return f"{self.tokens_in} -> {self.tokens_out}, {self.options.method}"

    @property
    def leaves_norm(self) -> bool:
        """Whether the method applies the layer norm of the metric itself."""
        return self.options.metric == "normalized" and not self.normalizes

    @property
    def reads_attention(self) -> bool:
        """Whether queries or keys have to be captured in this block."""
        pools = self.tokens_out < self.tokens_in
        return pools and (self.options.needs_scores or self.options.metric == "keys")

    def attach_hooks(self, attention: nn.Module) -> None:
        """Capture queries and keys of the block's attention, only where needed.

        `q_norm` and `k_norm` are modules in every attention of timm (identities where a model has
        no such norm), so timm's fused attention stays as it is.
        """
        if self.reads_attention:
            q_norm, k_norm = attention.q_norm, attention.k_norm
            self.is_hooked = True
            self._hooks = [
                q_norm.register_forward_hook(capture_queries),  # type: ignore[union-attr]
                k_norm.register_forward_hook(capture_keys),  # type: ignore[union-attr]
            ]

    def detach_hooks(self) -> None:
        """Undo `attach_hooks`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.is_hooked = [], False

    def tokens_to_keep(self, tokens: int) -> int:
        """K for `tokens` patch tokens: the schedule's, or its share for another image size."""
        return tokens_left(tokens, self.tokens_out, self.tokens_in)

    def attention_mask(self, x: Tensor, sizes: Tensor | None) -> Tensor | None:
        """log(size) for every key, added to the attention logits (ToMe, eq. 1): (B, 1, 1, P + N).

        Of the type of the queries (attention on GPUs misreads another), in rows whose starts are
        multiples of 8 apart, as its kernels want them. None where all sizes are 1 or proportional
        attention is off.
        """
        if sizes is None or not self.options.proportional_attention:
            return None
        kind, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        length = self.prefix_tokens + sizes.shape[1]
        rows = F.pad(sizes.log().to(dtype), (self.prefix_tokens, -length % 8))
        return rows[:, None, None, :length]

    def forward(
        self,
        x: Tensor,
        sizes: Tensor | None,
        source: Tensor | None,
        inputs: AttentionInputs,
        patches: Patches | None = None,
    ) -> Tensor | PooledTokens:
        """Pool the patch tokens of x.

        x: (B, P + N, C). sizes: (B, N), source: (B, N_0), or None before anything is pooled.
        inputs: of the block's attention. patches: None unless dense features are asked for.
        Returns PooledTokens, or x itself as long as nothing is pooled.
        """
        prefix = self.prefix_tokens
        n = x.shape[1] - prefix
        k = self.tokens_to_keep(n)
        if k >= n:
            is_plain = sizes is None and patches is None
            return x if is_plain else PooledTokens(x, sizes, source, patches)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._pool(x, sizes, source, k, inputs, patches)
        return self._pool(x, sizes, source, k, inputs, patches)

    def _pool(
        self,
        x: Tensor,
        sizes: Tensor | None,
        source: Tensor | None,
        k: int,
        inputs: AttentionInputs,
        patches: Patches | None,
    ) -> PooledTokens:
        options, prefix = self.options, self.prefix_tokens
        recorded = THREAD.recorded.get(id(self))
        own = x[:, prefix:]
        if sizes is None:
            sizes = torch.ones(own.shape[:2], device=x.device, dtype=torch.float32)
        scores = {"size": sizes}
        if options.weights == "uniform":
            scores["uniform"] = torch.ones_like(sizes)
        if options.needs_scores:
            scores |= patch_scores(inputs, options, prefix=prefix, class_token=self.class_token)
        weights = scores[options.weights]
        if options.weights in SCORES:  # of a diverged image, too, positive and finite
            weights = weights.nan_to_num(nan=1.0).clamp(min=LEAST_WEIGHT)
        metric = self._metric(own.detach(), inputs.keys)
        labels, medoids, share, numbered = self._assign(metric, k, weights, sizes)
        kept = None if share is None else share > 0
        counted = sizes if kept is None else sizes * kept
        if share is None and options.reduce == "medoid":
            if medoids is None:
                medoids = medoids_near_mean(metric, Clusters.from_labels(labels, k), weights)
            share = medoids.to(weights.dtype)
        elif share is None:
            share = scores["significance"] if options.reduce == "significance" else sizes
        pooled, new_sizes, clusters = merge_tokens(
            x,
            labels,
            k,
            counted,
            share,
            prefix=prefix,
            leads=medoids,
            keep_norms=options.reduce == "norm",
            keep_longest=options.reduce == "max-norm" and kept is None,
            clusters=numbered,
            numbered=recorded is not None or patches is not None or self.follows_positions,
        )
        if clusters is not None and self.follows_positions:
            source = follow(source, clusters, kept)
        if clusters is not None and (recorded is not None or patches is not None):
            index = stand_ins(metric.float(), clusters, kept)
            if recorded is not None:
                recorded.append(Merge(index, kept))
            if patches is not None:
                patches = merged_patches(patches, own, pooled[:, prefix:], index)
        return PooledTokens(pooled, new_sizes, source, patches)

    def _assign(self, metric: Tensor, k: int, weights: Tensor, sizes: Tensor) -> Assignment:
        """What the method decides; one cluster of all tokens needs none."""
        options = self.options
        if k == 1 and "reduce" in self.method.takes:
            return Assignment(torch.zeros_like(sizes, dtype=torch.int64))
        return self.method(
            metric,
            k,
            weights=weights,
            sizes=sizes,
            start=options.start,
            iterations=options.iterations,
            grid=self.grid,
            depth=self.depth,
            normalized=self.leaves_norm,
        )

    def _metric(self, patches: Tensor, keys: Tensor | None) -> Tensor:
        """What distances are measured on: (B, N, D), float32 unless the method applies the norm."""
        if self.options.metric == "keys":
            assert keys is not None
            metric = keys.detach().float().mean(1)[:, self.prefix_tokens :]
        elif self.leaves_norm:
            metric = patches
        else:
            metric = patches.float()
            if self.normalizes:
                metric = F.layer_norm(metric, metric.shape[-1:])
        if self.projection is not None:
            projection = self.projection
            if projection.device != metric.device:  # weights that hooks bring in block by block
                projection = projection.to(metric.device)
            metric = metric @ projection.to(metric.dtype) / projection.shape[1] ** 0.5
        return metric


def capture_queries(norm: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook of an attention's `q_norm`."""
    if THREAD.block is not None:
        THREAD.block.queries = output


def capture_keys(norm: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook of an attention's `k_norm`."""
    if THREAD.block is not None:
        THREAD.block.keys = output


def received(x: Tensor | tuple[Any, ...]) -> PooledTokens:
    """What a module was handed, as `PooledTokens`: plain tokens, or what the block before returned.

    Raises:
        TpcliError: in a reentrant checkpoint, where gradients would be lost.
    """
    if isinstance(x, PooledTokens):
        return x
    if not isinstance(x, tuple):
        return PooledTokens(x, None)
    # only autograd's own functions, of which reentrant checkpointing is one, make tuples plain;
    # they hand on no gradients of what is inside a tuple
    tokens = PooledTokens(*x)
    if tokens.x.requires_grad and not torch.is_grad_enabled():
        raise TpcliError(
            "reentrant gradient checkpointing loses the gradients of pooled tokens; use "
            "use_reentrant=False (timm.layers.set_reentrant_ckpt(False), "
            "CheckpointImpl.NO_REENTRANT)."
        )
    return tokens


def pooled_forward(block: nn.Module, x: Tensor | PooledTokens, *args: Any, **kwargs: Any) -> Any:
    """Forward of a block with a pooling layer: its own, with the layer at its place."""
    layer: TokenPooling | None = getattr(block, POOLING_NAME, None)
    if layer is None:  # unpooled, while others had wrapped this forward
        return call_original(block, "forward", x, *args, **kwargs)
    _check_arguments(block, x, args, kwargs)
    tokens, sizes, source, patches = received(x)
    rope = kwargs.get("rope")
    if rope is not None and source is not None and sizes is not None:
        kwargs["rope"] = rope = mean_rotations(rope, source, sizes)
    family = layer.family
    attention = family.attention(block)
    mask = layer.attention_mask(tokens, sizes)
    run = BlockRun(Attending(source, sizes, mask, layer.prefix_tokens))
    is_inside = layer.options.position == "attention"
    outer, THREAD.block = THREAD.block, run
    try:
        if family.bias is not None:
            family.bias.prepare(attention, kwargs, run.attending)
            mask = family.bias.total(attention, kwargs) if layer.reads_attention else None
        elif mask is not None:
            by_channel = layer.options.attention_bias == "channel"
            kwargs["attn_mask"] = mask.as_subclass(KeyBias) if by_channel else mask
        if is_inside:
            assert family.halves is not None
            tokens = family.halves[0](block, tokens, **kwargs)
        else:
            tokens = call_original(block, "forward", tokens, **kwargs)
    finally:
        THREAD.block = outer
    rotate_half = bool(getattr(attention, "rotate_half", False))
    scale = float(attention.scale)  # type: ignore[arg-type]
    queries, keys = family.laid_out(run.queries), family.laid_out(run.keys)
    if layer.is_hooked and (queries is None or keys is None):
        raise TpcliError(
            f"the attention of a block ({type(attention).__name__}) does not run its q_norm and "
            "k_norm, so its queries and keys can't be seen; use `weights=size` and `metric=tokens`."
        )
    inputs = AttentionInputs(scale, mask, rope, rotate_half, queries, keys)
    out = layer(tokens, sizes, source, inputs, patches)
    if not is_inside:
        return out
    assert family.halves is not None
    transform = family.halves[1]
    if isinstance(out, PooledTokens):
        return out._replace(x=transform(block, out.x))
    return transform(block, out)


def _check_arguments(block: nn.Module, x: object, args: Any, kwargs: dict[str, Any]) -> None:
    if isinstance(x, torch.fx.Proxy):
        raise TpcliError(
            "torch.fx can't trace into the blocks of a pooled model; make "
            f"{type(block).__module__}.{type(block).__name__} a leaf module of the tracer, or use "
            "torch.export."
        )
    if args or kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
        raise TpcliError("a pooled model takes no attention mask of its own; unpool it first.")
