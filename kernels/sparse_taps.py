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

# inner: taps at a time. Few pixels have many taps and the other way round: what counts is how many loads a
# thread has under way, 16 to 32 here, since every round of taps takes as long as memory takes to answer.
TAP_SUM_CONFIGS = (
    Config(block=128, inner=32, warps=4),
    Config(block=256, inner=8, warps=4),
    Config(block=256, inner=16, warps=4),
    Config(block=512, inner=8, warps=4),
    Config(block=1024, inner=8, warps=8),
    Config(block=64, inner=64, warps=4),
    Config(block=64, inner=128, warps=8),
    Config(block=128, inner=64, warps=8),
)
GROUP = 8  # taps whose products with one gradient are summed together
# outer: how many times _PROGRAMS it is cut into, where there are pixels for them.
WEIGHT_GRAD_CONFIGS = (
    Config(block=256, inner=GROUP, warps=4, outer=4),
    Config(block=256, inner=GROUP, warps=4),
    Config(block=256, inner=GROUP, warps=4, outer=16),
    Config(block=512, inner=GROUP, warps=4, outer=4),
    Config(block=512, inner=GROUP, warps=8, outer=4),
    Config(block=128, inner=GROUP, warps=4),
    Config(block=64, inner=GROUP, warps=2),
)
# Compiled for in general: every special case of each would be one more compilation, and widens no load.
_GENERAL = {
    "do_not_specialize": ["taps", "segments", "columns", "source_columns", "source_image", "blocks_of_chunk"],
    "do_not_specialize_on_alignment": ["values_ptr"],
}
_PROGRAMS = 1024  # of the weight gradient, times a configuration's outer
_MOST_CHUNKS = 128


@triton.jit(**_GENERAL)
def tap_sum_kernel(
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
    tap = begin + tl.arange(0, TAPS)
    offset, value = _taps(values_ptr, offsets_ptr, order_ptr, tap, end, ORDERED)
    total = tl.zeros((TAPS, BLOCK), tl.float32)
    for _ in range(begin, end, TAPS):
        kept = tap < end
        x = tl.load(source + offset[:, None] + at[None, :], mask=kept[:, None], other=0.0)
        tap += TAPS
        # The next taps are on their way while this round's pixels are.
        next_offset, next_value = _taps(values_ptr, offsets_ptr, order_ptr, tap, end, ORDERED)
        total += value[:, None] * x
        offset, value = next_offset, next_value
    plane = image * segments + segment
    tl.store(out_ptr + plane * pixels + pixel, tl.sum(total, axis=0), mask=inside)


@triton.jit
def _taps(values_ptr, offsets_ptr, order_ptr, tap, end, ORDERED: tl.constexpr):
    """(offset, value) of taps, 0 past the end."""
    kept = tap < end
    place = tap
    if ORDERED:
        place = tl.load(order_ptr + tap, mask=kept, other=0)
    offset = tl.load(offsets_ptr + tap, mask=kept, other=0)
    return offset, tl.load(values_ptr + place, mask=kept, other=0.0)


@triton.jit(**_GENERAL)
def weight_grad_kernel(
    partial_ptr,
    grad_ptr,
    source_ptr,
    offsets_ptr,
    order_ptr,
    starts_ptr,
    group_segments_ptr,
    group_starts_ptr,
    taps,
    images,
    segments,
    pixels,
    columns,
    source_columns,
    source_image,
    blocks_of_chunk,
    ORDERED: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For the taps of one group the sum of gradient times source over one chunk of the pixels."""
    group = tl.program_id(0)
    chunk = tl.program_id(1)
    segment = tl.load(group_segments_ptr + group)
    tap = tl.load(group_starts_ptr + group) + tl.arange(0, TAPS)
    kept = tap < tl.load(starts_ptr + segment + 1)
    offset = tl.load(offsets_ptr + tap, mask=kept, other=0)
    blocks = tl.cdiv(pixels, BLOCK)
    first = chunk * blocks_of_chunk
    last = tl.minimum(first + blocks_of_chunk, blocks * images)
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
    tl.store(partial_ptr + chunk.to(tl.int64) * taps + place, tl.sum(total, axis=1), mask=kept)


def tap_sum(
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
        tap_sum_kernel[(index.segments * triton.cdiv(pixels, config.block), images)](
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
        run("tap_sum", problem, for_interpreter(TAP_SUM_CONFIGS, pixels, inner=8), launch)
    return out


def weight_grad(
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
        chunks = max(1, min(_MOST_CHUNKS, blocks, _PROGRAMS * config.outer // index.groups))
        of_chunk = triton.cdiv(blocks, chunks)
        chunks = triton.cdiv(blocks, of_chunk)
        partial = torch.empty(chunks, taps, dtype=torch.float32, device=grad.device)
        weight_grad_kernel[(index.groups, chunks)](
            partial,
            grad,
            source,
            index.offsets,
            index.order,
            index.starts,
            index.group_segments,
            index.group_starts,
            taps,
            images,
            index.segments,
            pixels,
            columns,
            source_columns,
            source[0].numel(),
            of_chunk,
            ORDERED=index.ordered,
            TAPS=config.inner,
            BLOCK=config.block,
            **config.options,
        )
        result[:] = [partial[0] if chunks == 1 else partial.sum(0)]

    problem = (images, index.segments, rows, columns, source_columns, taps, index.digest)
    with on_device_of(source):
        run("weight_grad", problem, for_interpreter(WEIGHT_GRAD_CONFIGS, pixels), launch)
    return result[0]
