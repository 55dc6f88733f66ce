"""Dense features once more: a plain loop over patches that follows `trace` by hand."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import tpcli
from tpcli.surgery import PooledTokens, TokenPooling


def by_hand(model: nn.Module, x: Tensor) -> list[Tensor]:
    """(B, N_0, C) after each block, patch by patch, from what hooks and `trace` see."""
    merges: list[tuple[Tensor, Tensor]] = []
    blocks: list[tuple[Tensor, int]] = []
    hooks = []
    prefix = model.num_prefix_tokens
    for block in model.blocks:
        hooks.append(
            block.register_forward_hook(lambda _, __, out: blocks.append((out, len(merges))))
        )
    for layer in model.modules():
        if isinstance(layer, TokenPooling):
            hooks.append(
                layer.register_forward_hook(lambda _, args, out: merges.append((args[0], out.x)))
            )
    with torch.no_grad(), tpcli.trace(model) as record:
        model(x)
    for hook in hooks:
        hook.remove()
    dense = []
    for out, done in blocks:
        tokens = out.x if isinstance(out, PooledTokens) else out
        rows = torch.empty(len(x), merges[0][0].shape[1] - prefix, tokens.shape[2])
        for b, p in itertools.product(range(rows.shape[0]), range(rows.shape[1])):
            token, offset = p, torch.zeros(tokens.shape[2])
            for (before, after), index in zip(merges[:done], record.assignments, strict=False):
                new = int(index[b, token])
                offset = offset + before[b, prefix + token] - after[b, prefix + new]
                token = new
            rows[b, p] = tokens[b, prefix + token] + offset
        dense.append(rows)
    return dense


def assert_as_by_hand(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        got = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    for one, other in zip(got, by_hand(model, x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
