"""FLOPs by fvcore, with the operators that it lacks. One multiply-add is one FLOP.

fvcore traces the model and asks a handle per operator. As shipped it counts nothing for fused
attention or `cdist`, and only warns of what it does not know. Here every operator is either
counted, or on the list of those that fvcore's convention leaves out (element-wise work, moving,
sorting and comparing data), or an error.
"""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import Handle, elementwise_flop_counter, get_shape
from torch import Tensor, nn

from tpcli.errors import TpcliError, UserError
from tpcli.surgery import check_supported, find, geometry
from tpcli.surgery.geometry import POOLING_NAME, patch_tokens
from tpcli.system.text import CONVENTION as MULTIPLY_ADDS

CONVENTION = f"{MULTIPLY_ADDS} (fvcore), per image"


@dataclass(frozen=True)
class BlockFlops:
    """A block: patch tokens in and out (no prefix tokens), FLOPs with pooling, pooling's own."""

    index: int
    tokens_in: int
    tokens_out: int
    flops: int
    pooling_flops: int


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one image.

    total: all. pooling: the share of it that pooling itself costs. blocks: per transformer block.
    by_module, by_op: the same total, cut in two other ways.
    """

    total: int
    pooling: int
    params: int
    blocks: tuple[BlockFlops, ...]
    by_module: dict[str, int]
    by_op: dict[str, int]


def count_flops(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> FlopCount:
    """Count the FLOPs of one image through `model`, pooled or not.

    Of a model that holds a Vision Transformer, the FLOPs of that one are counted. It is traced in
    eval mode on one blank image and left as it was.

    Args:
        input_size: (channels, height, width); the model's own where left out.

    Raises:
        UserError: the model is none that can be pooled, or is quantized.
        TpcliError: an operator is neither counted nor on the list of free ones.
    """
    check_supported(model)
    model = find(model)
    if _is_quantized(model):
        raise UserError(
            f"FLOPs of a quantized {type(model).__name__} can't be counted; pool the model first, "
            "then quantize it."
        )
    parameter = next(model.parameters())
    size = input_size or geometry.input_size(model)
    image = torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)
    training = {module: module.training for module in model.modules()}
    checkpointing = getattr(model, "grad_checkpointing", False)
    model.eval()
    model.grad_checkpointing = False  # type: ignore[assignment]
    try:
        with ThreadPoolExecutor(1) as thread:
            analysis = thread.submit(_analyse, model, image).result()
    finally:
        for module, was_training in training.items():
            module.training = was_training
        model.grad_checkpointing = checkpointing  # type: ignore[assignment]
    unknown = sorted(analysis.unsupported_ops())
    if unknown:
        raise TpcliError(
            f"operators {', '.join(unknown)} are neither counted nor known to be free; "
            "please report the model."
        )
    total = int(analysis.total())
    modules = {name: int(flops) for name, flops in analysis.by_module().items() if flops}
    ops = {op: int(flops) for op, flops in analysis.by_operator().items() if flops}
    blocks = _blocks(model, modules, size)
    pooling = sum(block.pooling_flops for block in blocks)
    params = sum(p.numel() for p in model.parameters())
    return FlopCount(total, pooling, params, blocks, modules, ops)


def _is_quantized(model: nn.Module) -> bool:
    """Whether torch has replaced layers by quantized ones, or torchao the tensors in them."""
    modules = any("quantized" in type(module).__module__ for module in model.modules())
    tensors = (type(parameter.data).__module__ for parameter in model.parameters())
    return modules or any(name.startswith("torchao.") for name in tensors)


def _analyse(model: nn.Module, image: Tensor) -> FlopCountAnalysis:
    """Trace and count, in a thread of its own: for each operator a tracer records all its callers.

    That is most of the work where the stack is deep; the stack of a new thread is not.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(model, (image,))
        analysis.set_op_handle(**{**COUNTED, **dict.fromkeys(FREE)})  # None: known, costs 0
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.total()
    return analysis


def _blocks(
    model: nn.Module, modules: dict[str, int], size: tuple[int, int, int]
) -> tuple[BlockFlops, ...]:
    tokens = patch_tokens(model)
    if size != geometry.input_size(model):
        tokens = math.prod(model.patch_embed.dynamic_feat_size(size[1:]))  # type: ignore[union-attr, operator]
    rows = []
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        layer = getattr(block, POOLING_NAME, None)
        left = tokens if layer is None else layer.tokens_to_keep(tokens)
        flops = modules.get(f"blocks.{i}", 0)
        pooling = modules.get(f"blocks.{i}.{POOLING_NAME}", 0)
        rows.append(BlockFlops(i, tokens, left, flops, pooling))
        tokens = left
    return tuple(rows)


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """QK^T and its product with V: (..., L, E), (..., S, E), (..., S, Ev)."""
    query, key, value = map(get_shape, inputs[:3])
    return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


def _baddbmm_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """(B, N, D) x (B, D, M); the addition is part of the multiply-adds."""
    left, right = get_shape(inputs[1]), get_shape(inputs[2])
    return int(math.prod(left) * right[-1])


def _cdist_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """(..., N, D), (..., M, D): one multiply-add per channel and pair."""
    return int(math.prod(get_shape(inputs[0])) * get_shape(inputs[1])[-2])


def _added_elements(inputs: list[Any], outputs: list[Any]) -> int:
    """(self, dim, index, source): one addition for each element of the source."""
    return int(math.prod(get_shape(inputs[3])))


COUNTED: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention_flops,
    "aten::baddbmm": _baddbmm_flops,
    "aten::baddbmm_": _baddbmm_flops,
    "aten::cdist": _cdist_flops,
    "aten::index_add": _added_elements,
    "aten::index_add_": _added_elements,
    "aten::scatter_add": _added_elements,
    "aten::rms_norm": elementwise_flop_counter(2, 0),  # a square and a scale
    "aten::upsample_linear1d": elementwise_flop_counter(0, 2),
    "aten::_upsample_bilinear2d_aa": elementwise_flop_counter(0, 4),
    "aten::upsample_bicubic2d": elementwise_flop_counter(0, 16),
    "aten::_upsample_bicubic2d_aa": elementwise_flop_counter(0, 16),
}
"""Operators counted here beside those that fvcore counts itself."""

ELEMENTWISE = (
    "__and__ __or__ __rshift__ __xor__ abs add add_ addcmul bitwise_and bitwise_not bitwise_or "
    "ceil clamp clamp_ clamp_min clamp_min_ cos div div_ eq exp floor_divide ge gelu gt hardtanh "
    "le leaky_relu log logical_and logical_not lt masked_fill masked_fill_ mul mul_ nan_to_num "
    "nan_to_num_ ne neg pow reciprocal relu remainder rsqrt rsub sigmoid silu sin softmax "
    "log_softmax sqrt square sub sub_ tanh where"
).split()
REDUCTIONS = (
    "all amax amin any argmax argmin avg_pool2d cummax cumsum linalg_vector_norm max maximum "
    "max_pool2d mean min minimum norm prod sum var"
).split()
MOVING = (
    "arange argsort as_strided bincount cat chunk clone contiguous copy_ detach diag diagonal "
    "dropout empty empty_like expand expand_as eye eye_ fill_ flatten flip full full_like gather "
    "index index_put index_put_ index_select lift_fresh linspace meshgrid narrow new_full new_ones "
    "new_zeros nonzero one_hot ones ones_like outer pad permute repeat repeat_interleave reshape "
    "reshape_as roll scatter scatter_ scatter_reduce select slice sort split split_with_sizes "
    "squeeze stack t take_along_dim tile to topk transpose tril triu type_as unbind unflatten "
    "unsqueeze view zeros zeros_like constant_pad_nd"
).split()
FREE: tuple[str, ...] = tuple(f"aten::{op}" for op in (*ELEMENTWISE, *REDUCTIONS, *MOVING))
"""Operators that cost nothing under fvcore's convention."""
