"""The two sums every sparse convolution is made of: over the taps of a plane, and over the pixels of a tap.

Both take sources whose planes are as wide as ``source_columns`` and read the pixel (i, j) of a result at
i * source_columns + j from a tap's offset: no bounds are checked, so sources carry their borders with them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.sparse_index import TapIndex
from oes_fast.kernels.tuning import Config, for_interpreter, run
from torch import Tensor

GATHER_CONFIGS = (
    Config(block=256, inner=8, warps=4),
    Config(block=512, inner=8, warps=4),
    Config(block=128, inner=8, warps=4),
    Config(block=128, inner=16, warps=4),
    Config(block=64, inner=16, warps=2),
    Config(block=1024, inner=4, warps=8),
)
CHUNK = 8  # taps whose products with one gradient are summed together
DOT_CONFIGS = (
    Config(block=256, inner=CHUNK, warps=4),
    Config(block=512, inner=CHUNK, warps=4),
    Config(block=512, inner=CHUNK, warps=8),
    Config(block=128, inner=CHUNK, warps=4),
    Config(block=64, inner=CHUNK, warps=2),
)
# Compiled for in general: every special case of each would be one more compilation, and widens no load.
_GENERAL = {
    "do_not_specialize": ["taps", "segments", "columns", "source_columns", "source_image", "blocks_of_split"],
    "do_not_specialize_on_alignment": ["values_ptr"],
}
_PROGRAMS = 1024  # that the weight gradient is cut into where there are pixels for it: 8 for each of 132 SMs
_MOST_SPLITS = 64


@triton.jit(**_GENERAL)
def gather_kernel(
    out_ptr,
    source_ptr,
    values_ptr,
    offsets_ptr,
    order_ptr,
    starts_ptr,
    segments,
    pixels,
    columns,
    source_columns,
    source_image,
    ORDERED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of pixels of one plane: the sum over its taps of value times source."""
    program = tl.program_id(0)
    segment = program % segments
    image = tl.program_id(1).to(tl.int64)
    pixel = program // segments * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    at = tl.where(inside, pixel // columns * source_columns + pixel % columns, 0)
    source = source_ptr + image * source_image
    begin = tl.load(starts_ptr + segment)
    end = tl.load(starts_ptr + segment + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(begin, end, TAPS):
        tap = first + tl.arange(0, TAPS)
        kept = tap < end
        offset = tl.load(offsets_ptr + tap, mask=kept, other=0)
        place = tap
        if ORDERED:
            place = tl.load(order_ptr + tap, mask=kept, other=0)
        value = tl.load(values_ptr + place, mask=kept, other=0.0)
        x = tl.load(source + offset[:, None] + at[None, :], mask=kept[:, None], other=0.0)
        total += tl.sum(value[:, None] * x, axis=0)
    plane = image * segments + segment
    tl.store(out_ptr + plane * pixels + pixel, total, mask=inside)


@triton.jit(**_GENERAL)
def dot_kernel(
    partial_ptr,
    grad_ptr,
    source_ptr,
    offsets_ptr,
    order_ptr,
    starts_ptr,
    chunk_segments_ptr,
    chunk_starts_ptr,
    taps,
    images,
    segments,
    pixels,
    columns,
    source_columns,
    source_image,
    blocks_of_split,
    ORDERED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For the taps of one chunk the sum of gradient times source over one share of the pixels."""
    chunk = tl.program_id(0)
    split = tl.program_id(1)
    segment = tl.load(chunk_segments_ptr + chunk)
    tap = tl.load(chunk_starts_ptr + chunk) + tl.arange(0, TAPS)
    kept = tap < tl.load(starts_ptr + segment + 1)
    offset = tl.load(offsets_ptr + tap, mask=kept, other=0)
    blocks = tl.cdiv(pixels, BLOCK)
    first = split * blocks_of_split
    last = tl.minimum(first + blocks_of_split, blocks * images)
    total = tl.zeros((TAPS, BLOCK), tl.float32)
    for block in range(first, last):
        image = (block // blocks).to(tl.int64)
        pixel = block % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        at = pixel // columns * source_columns + pixel % columns
        grad = tl.load(grad_ptr + (image * segments + segment) * pixels + pixel, mask=inside, other=0.0)
        source = source_ptr + image * source_image
        x = tl.load(source + offset[:, None] + at[None, :], mask=kept[:, None] & inside[None, :], other=0.0)
        total += grad[None, :] * x
    place = tap
    if ORDERED:
        place = tl.load(order_ptr + tap, mask=kept, other=0)
    tl.store(partial_ptr + split.to(tl.int64) * taps + place, tl.sum(total, axis=1), mask=kept)


def gather(
    source: Tensor, values: Tensor, index: TapIndex, *, rows: int, columns: int, source_columns: int
) -> Tensor:
    """[N, segments, rows, columns]: for each plane of the result the sum over its taps.

    Args:
        source: float32, contiguous, N images first.
        values: of the taps, float32 [nnz], in the order of the pattern.
        index: taps by plane of the result.
        rows, columns: of a plane of the result.
        source_columns: of a plane of the source.
    """
    images, pixels = source.shape[0], rows * columns
    out = source.new_empty(images, index.segments, rows, columns)
    if out.numel() == 0:
        return out

    def launch(config: Config) -> None:
        gather_kernel[(index.segments * triton.cdiv(pixels, config.block), images)](
            out,
            source,
            values,
            index.offsets,
            index.order,
            index.starts,
            index.segments,
            pixels,
            columns,
            source_columns,
            source[0].numel(),
            ORDERED=index.ordered,
            TAPS=config.inner,
            BLOCK=config.block,
            **config.options,
        )

    problem = (images, index.segments, rows, columns, source_columns, len(values), index.digest)
    with on_device_of(source):
        run("gather", problem, for_interpreter(GATHER_CONFIGS, pixels), launch)
    return out


def dot(
    grad: Tensor, source: Tensor, index: TapIndex, *, rows: int, columns: int, source_columns: int
) -> Tensor:
    """[nnz]: for each tap the sum over images and pixels of its plane's gradient times what it reads.

    The order of the sum depends on shapes and configuration alone: the same bits in every run.

    Args:
        grad: float32, contiguous, [N, segments, rows, columns].
        source: float32, contiguous, N images first.
        index: taps by plane of ``grad``.
        rows, columns: of a plane of ``grad``.
        source_columns: of a plane of the source.
    """
    images, pixels, taps = source.shape[0], rows * columns, len(index.order)
    if taps == 0 or images == 0:
        return grad.new_zeros(taps)
    result: list[Tensor] = []

    def launch(config: Config) -> None:
        blocks = images * triton.cdiv(pixels, config.block)
        splits = max(1, min(_MOST_SPLITS, blocks, _PROGRAMS // index.chunks))
        of_split = triton.cdiv(blocks, splits)
        splits = triton.cdiv(blocks, of_split)
        partial = torch.empty(splits, taps, dtype=torch.float32, device=grad.device)
        dot_kernel[(index.chunks, splits)](
            partial,
            grad,
            source,
            index.offsets,
            index.order,
            index.starts,
            index.chunk_segments,
            index.chunk_starts,
            taps,
            images,
            index.segments,
            pixels,
            columns,
            source_columns,
            source[0].numel(),
            of_split,
            ORDERED=index.ordered,
            TAPS=config.inner,
            BLOCK=config.block,
            **config.options,
        )
        result[:] = [partial[0] if splits == 1 else partial.sum(0)]

    problem = (images, index.segments, rows, columns, source_columns, taps, index.digest)
    with on_device_of(source):
        run("dot", problem, for_interpreter(DOT_CONFIGS, pixels), launch)
    return result[0]
