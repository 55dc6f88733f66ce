"""Which kernels a pooling launches, in which tiles, on which memory.

A `Recipe` holds the launches for one shape. It is made once, and so are the kernels' arguments: a
call allocates one workspace and its results, fills in pointers and launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tpcli.pooling.backends import dispatch as constants

from . import kernels

Parts = tuple[Tensor, Tensor, Tensor]
"""lead (B, K), followers, into (B, N - K): those of `Clusters`."""

DEEP_CLUSTERS, DEEP_FOLLOWERS = 8, 256
"""At most so many clusters of at least so many followers in all are merged by several programs
each; one program takes the followers of a cluster otherwise."""

SEGMENT = 64
"""Followers that one of those programs takes."""

ALIGNMENT = 64
"""Bytes; Triton makes faster code for pointers that are multiples of 16."""


class Given(int):
    """A tensor that the caller hands over: its number."""


class Room(NamedTuple):
    """Part of the workspace."""

    number: int
    offset: int
    extent: int
    dtype: torch.dtype


class Launch(NamedTuple):
    """So many programs of a kernel. arguments: Given, Room, or a number."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    sizes: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


class Recipe:
    """Launches one after the other, and the memory that they share.

    prepared: for each launch a compiled kernel, its arguments, and which of them are pointers into
    tensors and into the workspace; None before the first run.
    """

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.rooms: list[Room] = []
        self.bytes = 0
        self.prepared: list[tuple[Any, list[Any], list[Any], list[Any]]] | None = None

    def room(self, count: int, dtype: torch.dtype = torch.float32) -> Room:
        """Take part of the workspace."""
        room = Room(len(self.rooms), self.bytes, count, dtype)
        self.rooms.append(room)
        self.bytes += -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return room

    def add(
        self,
        kernel: Any,
        programs: int,
        *arguments: Any,
        warps: int = 4,
        stages: int = 3,
        **sizes: Any,
    ) -> None:
        """Append a launch."""
        self.launches.append(Launch(kernel, programs, arguments, sizes, warps, stages))


class KernelError(Exception):
    """A kernel could not be compiled or launched: its name; the cause is chained."""


direct = True
"""Whether compiled kernels are launched without Triton's own search for them."""


def run(recipe: Recipe, tensors: Sequence[Tensor]) -> None:
    """Launch the kernels of a recipe on these tensors."""
    work = torch.empty(recipe.bytes, dtype=torch.uint8, device=tensors[0].device)
    pointers = [tensor.data_ptr() for tensor in tensors]
    if recipe.prepared is not None and direct and not any(p % 16 for p in pointers):
        _run_prepared(recipe.prepared, pointers, work.data_ptr(), tensors[0].device)
        return
    prepared = []
    for launch in recipe.launches:
        if not launch.programs:
            return
        try:
            compiled = _start(launch, launch.kernel, tensors, work)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise KernelError(launch.name) from error
        prepared.append(_prepare(launch, compiled))
    if not any(p % 16 for p in pointers) and None not in prepared:
        recipe.prepared = prepared  # type: ignore[assignment]


def trace(recipe: Recipe, tensors: Sequence[Tensor]) -> None:
    """Put the launches of a recipe into the graph that is being made."""
    device = tensors[0].device
    rooms = [torch.empty(room.extent, dtype=room.dtype, device=device) for room in recipe.rooms]
    for launch in recipe.launches:
        kernel = torch.library.wrap_triton(launch.kernel)
        _start(launch, kernel, tensors, rooms)


def _start(
    launch: Launch, kernel: Any, tensors: Sequence[Tensor], work: Tensor | list[Tensor]
) -> Any:
    """Launch through Triton, which compiles what it has not compiled yet."""

    def value(argument: Any) -> Any:
        if isinstance(argument, Given):
            return tensors[argument]
        if not isinstance(argument, Room):
            return argument
        if isinstance(work, list):
            return work[argument.number]
        end = argument.offset + argument.extent * argument.dtype.itemsize
        return work[argument.offset : end].view(argument.dtype)

    arguments = [value(argument) for argument in launch.arguments]
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return kernel[(launch.programs,)](*arguments, **launch.sizes, **options)


def _prepare(launch: Launch, compiled: Any) -> tuple[Any, list[Any], list[Any], list[Any]] | None:
    """A compiled kernel with its arguments in order; None in the interpreter."""
    if not hasattr(compiled, "run"):
        return None
    arguments = [*launch.arguments, *launch.sizes.values()]
    given = [(i, int(one)) for i, one in enumerate(arguments) if isinstance(one, Given)]
    rooms = [(i, one.offset) for i, one in enumerate(arguments) if isinstance(one, Room)]
    return compiled[(launch.programs, 1, 1)], arguments, given, rooms


def _run_prepared(
    prepared: list[tuple[Any, list[Any], list[Any], list[Any]]],
    pointers: list[int],
    base: int,
    device: torch.device,
) -> None:
    from triton.runtime import driver

    stream = driver.active.get_current_stream(device.index or 0)
    for start, template, given, rooms in prepared:
        arguments = template.copy()
        for place, number in given:
            arguments[place] = pointers[number]
        for place, offset in rooms:
            arguments[place] = base + offset
        start(*arguments, stream=stream)


@cache
def precision_on(device: torch.device) -> str | None:
    """How float32 is multiplied on tensor cores; None without: then 16-bit values are widened.

    `tf32x3` adds three products of the parts of each value, and is as exact as float32 up to 2^-21
    of |a| |b|; `ieee` elsewhere than on NVIDIA's cards.
    """
    if device.type == "cuda" and torch.version.hip is None:
        return "tf32x3" if torch.cuda.get_device_capability(device) >= (8, 0) else None
    return "tf32x3" if device.type == "cpu" else "ieee"


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current device, which may be another one than the tensors'."""
    device = tensor.device
    if device.type == "cpu":
        return nullcontext()
    module = torch.get_device_module(device)
    here: AbstractContextManager[Any] = module.device(device)
    return nullcontext() if module.current_device() == device.index else here


def ward(
    z: Tensor,
    weights: Tensor,
    candidates: int,
    merges: Sequence[int],
    normalized: bool,
    traced: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels of `ward` (B, N), and the clusters in reading order.

    z: (B, N, D) of any float type, weights: (B, N). candidates: tokens that take part, by a sketch
    of all; N for all.
    """
    b, n, channels = z.shape
    z = dense_rows(z if normalized else z.float())
    labels = z.new_empty((b, n), dtype=torch.int64)
    parts = _empty_parts(labels, n - sum(merges))
    make = ward_recipe.__wrapped__ if traced else ward_recipe
    shape, form = (b, n, channels, z.stride(0), z.stride(1)), (candidates, tuple(merges))
    recipe = make(*shape, *form, normalized, z.dtype, precision_on(z.device))
    (trace if traced else run)(recipe, (z, weights.contiguous(), labels, *parts))
    return labels, *parts


@lru_cache(1024)
def ward_recipe(
    b: int,
    n: int,
    channels: int,
    sample_stride: int,
    token_stride: int,
    candidates: int,
    merges: tuple[int, ...],
    normalized: bool,
    dtype: torch.dtype,
    precision: str | None,
) -> Recipe:
    """Launches of `ward` on z, weights, labels and the three parts of the clusters."""
    recipe = Recipe()
    z, weights = Given(0), Given(1)
    outputs: list[Any] = [Given(i) for i in range(2, 6)]
    points: Any = z
    mass: Any = weights
    integers, sketched = torch.int32, candidates < n
    is_short = dtype != torch.float32 and precision is not None
    strides = (sample_stride, token_stride)
    mean, scale, squares, price = (recipe.room(b * n) for _ in range(4))
    partner = recipe.room(b * n, integers)
    dim = constants.SKETCH_DIM if sketched else 64
    sketch = recipe.room(b * n * dim) if sketched else mean
    if normalized or sketched or dtype != torch.float32:
        recipe.add(
            kernels.measure,
            b * _tiles(n, 8),
            *(z, mean, scale, squares, sketch, n, channels, *strides),
            constants.LAYER_NORM_EPSILON,
            DIM=dim,
            DIM_BLOCK=_block(dim),
            ROWS=8,
            NORMALIZED=normalized,
            SKETCHED=sketched,
        )

    def nearest(
        points: Any, shape: tuple[int, ...], kind: torch.dtype, mass: Any, chosen: Any, among: int
    ) -> None:
        """Price and partner of the `among` points that are chosen, or of all."""
        n, channels, *strides = shape
        exact = kind == torch.float32 or not is_short
        side = 32 if precision is None else 64
        recipe.add(
            kernels.nearest,
            b * _tiles(among, side),
            *(points, mean, scale, squares, mass, partner if chosen is None else chosen),
            *(price, partner, n, among, channels, *strides, constants.FAR),
            *(2 * (1 - constants.SHRINK), constants.LEAST_PRODUCT, constants.PLACES),
            warps=4 if precision is None else 8,
            stages=2 if exact else 3,
            ROWS=side,
            CHANNELS=16 if precision is None else 32 if exact else 64,
            NORMALIZED=normalized and points is z,
            CHOSEN=chosen is not None,
            EXACT=exact,
            PRECISION=precision or "ieee",
        )

    chosen, left = None, n
    if sketched:
        nearest(sketch, (n, dim, n * dim, dim), torch.float32, weights, None, n)
        chosen, found, left = recipe.room(b * candidates, integers), price, candidates
        price = recipe.room(b * n)
        sizes = {"N_BLOCK": _block(n), "warps": _warps(n)}
        arguments = (found, chosen, price, partner, n, candidates, constants.PLACES)
        recipe.add(kernels.choose, b, *arguments, **sizes)
    shape, labels, lead = (n, channels, *strides), None, None
    for step, count in enumerate(merges):
        before = shape[0]
        nearest(points, shape, dtype if points is z else torch.float32, mass, chosen, left)
        k, is_last = before - count, step == len(merges) - 1
        left -= count
        after = None if chosen is None or is_last else recipe.room(b * left, integers)
        wide = (b * n, b * k, b * (n - k), b * (n - k))
        new_labels, *parts = (
            outputs if is_last else [recipe.room(size, torch.int64) for size in wide]
        )
        next_price, next_partner = recipe.room(b * k), recipe.room(b * k, integers)
        recipe.add(
            kernels.join,
            b,
            *(price, partner, new_labels if labels is None else labels),
            *(new_labels if lead is None else lead, recipe.room(b * before, integers)),
            *(new_labels, *parts, partner if after is None else after, next_price, next_partner),
            *(n, before, count, 0 if after is None else left),
            *(constants.RELUCTANCE, constants.PLACES),
            warps=_warps(n),
            LATER=labels is not None,
            CHOSEN=after is not None,
            N_BLOCK=_block(n),
            JUMPS=_block(n).bit_length() - 1,
        )
        labels, lead, chosen, price, partner = new_labels, parts[0], after, next_price, next_partner
        if not is_last:
            points, mass = recipe.room(b * k * channels), recipe.room(b * k)
            norms = (mean, scale) if normalized else None
            tensors = (z, *parts, weights, weights, points, mass)
            _add_means(recipe, tensors, norms, (b, n, k, 0, channels, *strides), 0)
            shape = (k, channels, k * channels, channels)
    return recipe


def number(labels: Tensor, k: int, leads: Tensor | None, traced: bool = False) -> Parts:
    """`Clusters.from_labels`."""
    b, n = labels.shape
    parts = _empty_parts(labels, k)
    labels = labels.contiguous()
    make = number_recipe.__wrapped__ if traced else number_recipe
    recipe = make(b, n, k, leads is not None, labels.dtype)
    leads = labels if leads is None else leads.contiguous()
    (trace if traced else run)(recipe, (labels, leads, *parts))
    return parts


@lru_cache(1024)
def number_recipe(b: int, n: int, k: int, has_leads: bool, dtype: torch.dtype) -> Recipe:
    """Launches of `number` on labels, leads and the three parts of the clusters."""
    recipe = Recipe()
    labels, leads, *parts = map(Given, range(5))
    scratch = recipe.room(b * n, torch.int32)
    sizes = {"HAS_LEADS": has_leads, "N_BLOCK": _block(n), "warps": _warps(n)}
    recipe.add(kernels.number, b, labels, leads, scratch, *parts, n, k, **sizes)
    return recipe


def means(
    x: Tensor,
    parts: Parts,
    counted: Tensor,
    shares: Tensor,
    prefix: int,
    length: int,
    traced: bool = False,
) -> tuple[Tensor, Tensor]:
    """Means (B, P + K, C) and sizes (B, K) of numbered clusters.

    length: 0 for plain means, 1 for those as long as their members on average, 2 as the longest.
    """
    x, counted, shares = dense_rows(x), counted.contiguous(), shares.contiguous()
    lead, followers, into = (part.contiguous() for part in parts)
    b, total, channels = x.shape
    k = lead.shape[1]
    out, sizes = x.new_empty((b, prefix + k, channels)), counted.new_empty(b, k)
    make = means_recipe.__wrapped__ if traced else means_recipe
    shape = (b, total - prefix, k, prefix, channels, x.stride(0), x.stride(1))
    recipe = make(*shape, length, x.dtype)
    (trace if traced else run)(recipe, (x, lead, followers, into, counted, shares, out, sizes))
    return out, sizes


@lru_cache(1024)
def means_recipe(
    b: int,
    n: int,
    k: int,
    prefix: int,
    channels: int,
    sample_stride: int,
    token_stride: int,
    length: int,
    dtype: torch.dtype,
) -> Recipe:
    """Launches of `means` on x, lead, followers, into, counted, shares, the means and sizes."""
    recipe = Recipe()
    tensors = tuple(map(Given, range(8)))
    shape = (b, n, k, prefix, channels, sample_stride, token_stride)
    if k > DEEP_CLUSTERS or n - k < DEEP_FOLLOWERS:
        _add_means(recipe, tensors, None, shape, length)
        return recipe
    x, lead, followers, into, counted, shares, out, sizes = tensors
    segments, block = _tiles(n - k, SEGMENT), _block(channels)
    sums = recipe.room(b * k * segments * channels)
    figures = recipe.room(b * k * segments * 4)
    tiles = {"LENGTH": length, "CHANNELS": block, "warps": max(1, min(block // 64, 16))}
    recipe.add(
        kernels.partial,
        b * k * segments,
        *(x, lead, followers, into, counted, shares, sums, figures),
        *(n, k, prefix, channels, sample_stride, token_stride),
        **tiles,
        TOKENS=4,
        SEGMENT=SEGMENT,
    )
    recipe.add(
        kernels.combine,
        b * (prefix + k),
        *(x, lead, counted, shares, sums, figures, out, sizes),
        *(n, k, prefix, channels, segments, sample_stride, token_stride),
        *(constants.LARGEST_STRETCH, constants.LEAST_NORM),
        **tiles,
    )
    return recipe


def _add_means(
    recipe: Recipe,
    tensors: tuple[Any, ...],
    norms: tuple[Room, Room] | None,
    shape: tuple[int, ...],
    length: int,
) -> None:
    """Add the launch of `means`; norms: of the layer norm that is applied first, if one is."""
    x, lead, followers, into, counted, shares, out, sizes = tensors
    b, n, k, prefix, channels, *strides = shape
    block, rows = _block(channels), 4
    recipe.add(
        kernels.means,
        b * (_tiles(prefix + k, rows) + n - k),
        *(x, *((counted, counted) if norms is None else norms), lead, followers, into),
        *(counted, shares, recipe.room(b * (n - k), torch.int32), out, sizes),
        *(n, k, prefix, channels, *strides, constants.LARGEST_STRETCH, constants.LEAST_NORM),
        warps=max(1, min(block // 64, 16)),
        LENGTH=length,
        NORMALIZED=norms is not None,
        CHANNELS=block,
        ROWS=rows,
        TOKENS=4,
        SCANNED=128,
    )


def dense_rows(x: Tensor) -> Tensor:
    """Tokens whose channels lie side by side, and offsets inside a sample below 2^31."""
    return x if x.stride(2) == 1 and x.shape[1] * x.stride(1) < 2**31 else x.contiguous()


def _empty_parts(like: Tensor, k: int) -> Parts:
    b, n = like.shape
    lead, followers, into = (
        like.new_empty((b, length), dtype=torch.int64) for length in (k, n - k, n - k)
    )
    return lead, followers, into


def _block(n: int) -> int:
    """The next power of two, as the extents of a block are."""
    return max(16, 1 << (n - 1).bit_length())


def _tiles(n: int, rows: int) -> int:
    return -(-n // rows)


def _warps(n: int) -> int:
    """Of a program that holds all N tokens of a sample."""
    return 4 if n <= 256 else 8 if n <= 1024 else 16
