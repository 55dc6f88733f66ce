"""FLOPs by fvcore, with the operators that it lacks. One multiply-add is one FLOP.

fvcore traces the model and asks a handle per operator. As shipped it counts nothing for fused
attention or `cdist`, and only warns of what it does not know. Here every operator is either
counted, or on the list of those that fvcore's convention leaves out (element-wise work, moving,
sorting and comparing data), or an error.
"""

from __future__ import annotations

import math
import types
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import Handle, elementwise_flop_counter, get_shape
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn

from tpcli.errors import TpcliError, UserError, first_line
from tpcli.surgery import find, geometry
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
    by_module, by_op: the same total by module and by operator.
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
    eval mode on one blank image and left as it was. Counts are remembered by all that they depend
    on (`_description`), so that the next model of the same build costs milliseconds.

    Args:
        input_size: (channels, height, width); the model's own where left out.

    Raises:
        UserError: the model holds no Vision Transformer of timm, is quantized, or can't take images
            of this size.
        TpcliError: an operator is neither counted nor on the list of free ones.
    """
    model = find(model)
    if _is_quantized(model):
        raise UserError(
            f"FLOPs of a quantized {type(model).__name__} can't be counted; pool the model first, "
            "then quantize it."
        )
    size = input_size or geometry.input_size(model)
    with _plain(model):
        try:
            key: Hashable = (size, tuple(_description(model)))
        except _Undescribed:
            return _count(model, size)
        count = COUNTS.pop(key, None) or _count(model, size)
    COUNTS[key] = count  # the last one is the one used last
    while len(COUNTS) > MOST_COUNTS:
        COUNTS.popitem(last=False)
    return replace(count, by_module=dict(count.by_module), by_op=dict(count.by_op))


COUNTS: OrderedDict[Hashable, FlopCount] = OrderedDict()
"""Counts of this process, the least recently used first."""
MOST_COUNTS = 512


def _count(model: nn.Module, size: tuple[int, int, int]) -> FlopCount:
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    # weights that are on meta between the hooks of accelerate: those move the image to them
    device = "cpu" if hasattr(model, "_hf_hook") and parameter.is_meta else parameter.device
    image = torch.zeros(1, *size, device=device, dtype=parameter.dtype)
    try:
        with ThreadPoolExecutor(1) as thread:
            analysis = thread.submit(_analyse, model, image).result()
    except AssertionError as error:  # timm's check of the image size
        raise UserError(
            f"the model takes no images of {'x'.join(map(str, size))}: {first_line(error)}."
        ) from error
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


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradient checkpointing, in the body only."""
    training = {module: module.training for module in model.modules()}
    blocks: Any = model.blocks
    inside = dict(zip(blocks._modules, geometry.blocks_of(model), strict=True))
    wrapped, checkpointing = dict(blocks._modules), getattr(model, "grad_checkpointing", False)
    model.eval()
    blocks._modules.update(inside)
    model.grad_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training
        blocks._modules.update(wrapped)
        model.grad_checkpointing = checkpointing  # type: ignore[assignment]


class _Undescribed(Exception):
    """Something in a model that may change its count and can't be compared."""


IGNORED = frozenset(
    (
        *vars(nn.Module()),
        "token_pooling_spec",
        "pretrained_cfg",
        "default_cfg",
        "_hooks",
        "_replaced_by_pooling",
        "_replicate_for_data_parallel",
    )
)
"""Attributes of modules that are described otherwise, or change no count."""


def _description(model: nn.Module) -> Iterator[Hashable]:
    """All that a count depends on: every module's class with its forward, attributes, methods of
    its own, hooks, and the kind of its tensors.

    Raises:
        _Undescribed: there is something that can't be compared.
    """
    if isinstance(model, NaFlexVit):
        yield repr(model.pretrained_cfg)
    for name, module in model.named_modules():
        yield name, type(module), type(module).forward
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            yield _comparable(hook)
        for attribute, value in vars(module).items():
            if attribute not in IGNORED:
                yield attribute, _comparable(value)
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for part, tensor in own:
            yield part, type(tensor), tensor.shape, tensor.dtype, tensor.device


PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.Size, torch.device, type)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def _comparable(value: Any) -> Hashable:
    """The value, or what it consists of, such that equal ones do the same."""
    if isinstance(value, PLAIN + FUNCTIONS):
        return type(value), value  # 1 == True
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_comparable, value))
    if isinstance(value, Mapping):
        return dict, tuple((key, _comparable(item)) for key, item in value.items())
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_comparable, value))
    if isinstance(value, partial) and not value.keywords:
        # bound to the module that has it, whose description stands beside
        own = (item for item in value.args if not isinstance(item, nn.Module))
        return partial, value.func, *map(_comparable, own)
    if is_dataclass(value):
        return type(value), *(_comparable(getattr(value, f.name)) for f in fields(value))
    raise _Undescribed


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
        stem: Any = getattr(model, "patch_embed", None) or model.embeds
        tokens = math.prod(stem.dynamic_feat_size(size[1:]))
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
