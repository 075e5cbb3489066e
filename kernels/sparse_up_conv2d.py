"""Triton kernels of oes_fast/reference/sparse_up_conv2d.py.

The channels are mixed at the low resolution, B_uv[o] = sum_c w[o, c, u, v] x[c]; then each pixel of the
result adds one pixel of each of the nine B_uv. The gradient of B_uv sums the pixels of the result that read
it: two rows by two columns, and at the border the row or column that was clamped to it.

The channels are mixed, forwards and back, either by sums over the taps that are kept or by matrix products
with zeros for the dropped weights. About 40 % are kept in these layers: large images are faster by products,
small ones by sums; each problem is measured (oes_fast/kernels/tuning.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.sparse_index import TapIndex, tap_index
from oes_fast.kernels.sparse_taps import GROUP, tap_sum, weight_grad
from oes_fast.kernels.tuning import Config, for_interpreter, run
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

ADD_CONFIGS = (Config(block=256), Config(block=512))
SPREAD_CONFIGS = (Config(block=128), Config(block=256))
TAKE_CONFIGS = (Config(block=256),)
# How the channels are mixed, to choose from. A configuration's block has no other meaning here.
SUM, PRODUCT = Config(block=0), Config(block=1)
PRODUCT_PIXELS = 4096  # of an image from which products are taken where nothing was measured
_MOST_CHUNKS = 64  # of the pixels in the products that give the gradient of the weights


@triton.jit(do_not_specialize=["rows", "columns"])
def add_kernel(out_ptr, mixed_ptr, rows, columns, BLOCK: tl.constexpr):
    """One block of pixels of one plane of the result [2 rows, 2 columns] from nine planes [rows, columns]."""
    pixels = 4 * rows * columns
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row, column = pixel // (2 * columns), pixel % (2 * columns)
    total = tl.zeros((BLOCK,), tl.float32)
    for u in tl.static_range(3):
        # (Y + u - 1) div 2 rounds down: 2 is added before and 1 subtracted after.
        low_row = tl.minimum(tl.maximum((row + (u + 1)) // 2 - 1, 0), rows - 1)
        for v in tl.static_range(3):
            low_column = tl.minimum(tl.maximum((column + (v + 1)) // 2 - 1, 0), columns - 1)
            base = mixed_ptr + (plane * 9 + 3 * u + v) * rows * columns
            total += tl.load(base + low_row * columns + low_column, mask=inside, other=0.0)
    tl.store(out_ptr + plane * pixels + pixel, total, mask=inside)


@triton.jit
def _row(grad_ptr, row, column, rows, columns, inside):
    """Pixels of the gradient, zero outside of it."""
    seen = inside & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return tl.load(grad_ptr + row * columns + column, mask=seen, other=0.0)


@triton.jit
def _three(before, here, after, beyond, is_first, is_last):
    """What the taps 0, 1 and 2 sum of the pixels -1 .. 2 about 2 r, the clamped ones among them."""
    zero = tl.zeros(here.shape, tl.float32)
    first = after + beyond + tl.where(is_first, here, zero)
    last = before + here + tl.where(is_last, after, zero)
    return first, here + after, last


@triton.jit
def _rows(grad_ptr, row, column, rows, columns, inside):
    """:func:`_three` of one column over the rows about ``row``."""
    before = _row(grad_ptr, 2 * row - 1, column, 2 * rows, 2 * columns, inside)
    here = _row(grad_ptr, 2 * row, column, 2 * rows, 2 * columns, inside)
    after = _row(grad_ptr, 2 * row + 1, column, 2 * rows, 2 * columns, inside)
    beyond = _row(grad_ptr, 2 * row + 2, column, 2 * rows, 2 * columns, inside)
    return _three(before, here, after, beyond, row == 0, row == rows - 1)


@triton.jit(do_not_specialize=["rows", "columns"])
def spread_kernel(mixed_ptr, grad_ptr, rows, columns, BLOCK: tl.constexpr):
    """The gradient of nine planes [rows, columns] from that of the result [2 rows, 2 columns]."""
    pixels = rows * columns
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row, column = pixel // columns, pixel % columns
    grad = grad_ptr + plane * 4 * pixels
    a0, a1, a2 = _rows(grad, row, 2 * column - 1, rows, columns, inside)
    b0, b1, b2 = _rows(grad, row, 2 * column, rows, columns, inside)
    c0, c1, c2 = _rows(grad, row, 2 * column + 1, rows, columns, inside)
    d0, d1, d2 = _rows(grad, row, 2 * column + 2, rows, columns, inside)
    is_first, is_last = column == 0, column == columns - 1
    out = mixed_ptr + plane * 9 * pixels + pixel
    x, y, z = _three(a0, b0, c0, d0, is_first, is_last)
    tl.store(out, x, mask=inside)
    tl.store(out + pixels, y, mask=inside)
    tl.store(out + 2 * pixels, z, mask=inside)
    x, y, z = _three(a1, b1, c1, d1, is_first, is_last)
    tl.store(out + 3 * pixels, x, mask=inside)
    tl.store(out + 4 * pixels, y, mask=inside)
    tl.store(out + 5 * pixels, z, mask=inside)
    x, y, z = _three(a2, b2, c2, d2, is_first, is_last)
    tl.store(out + 6 * pixels, x, mask=inside)
    tl.store(out + 7 * pixels, y, mask=inside)
    tl.store(out + 8 * pixels, z, mask=inside)


@triton.jit(do_not_specialize=["numel"])
def take_kernel(out_ptr, values_ptr, places_ptr, numel, BLOCK: tl.constexpr):
    """The values at given places, 0 where the place is negative."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places_ptr + at, mask=at < numel, other=-1)
    tl.store(out_ptr + at, tl.load(values_ptr + place, mask=place >= 0, other=0.0), mask=at < numel)


def sparse_up_conv2d(x: Tensor, values: Tensor, taps: Tensor, by_input: Tensor, outputs: int) -> Tensor:
    """[N, outputs, 2 h, 2 w] of [N, C, h, w], float32, contiguous arguments."""
    n, inputs, rows, columns = x.shape
    out = x.new_empty(n, outputs, 2 * rows, 2 * columns)
    if out.numel() == 0:
        return out
    mixed: list[Tensor] = []

    def mix(how: Config) -> None:
        if how == SUM:
            index = _by_mixed(x, taps, outputs)
            mixed[:] = [tap_sum(x, values, index, rows=rows, columns=columns, source_columns=columns)]
        else:
            mixed[:] = [_weights(values, taps, outputs, inputs) @ x.flatten(2)]

    def launch(config: Config) -> None:
        grid = (n * outputs * triton.cdiv(4 * rows * columns, config.block),)
        add_kernel[grid](out, mixed[0], rows, columns, BLOCK=config.block, **config.options)

    with on_device_of(x):
        run("up_mix", (*x.shape, outputs, len(taps)), _ways(x, outputs, len(taps)), mix)
        run("up_add", tuple(out.shape), for_interpreter(ADD_CONFIGS, 4 * rows * columns), launch)
    return out


def sparse_up_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    needs_x: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and values, float32; [0] for one that is not needed."""
    (n, inputs, rows, columns), outputs = x.shape, grad.shape[1]
    mixed = grad.new_empty(n, outputs * 9, rows, columns)
    found = {"x": x.new_empty(0), "values": values.new_empty(0)}
    if mixed.numel() == 0 or inputs == 0:  # nothing to sum
        return torch.zeros_like(x) if needs_x else found["x"], values.new_zeros(len(values) * needs_values)
    size = {"rows": rows, "columns": columns, "source_columns": columns}

    def launch(config: Config) -> None:
        grid = (n * outputs * triton.cdiv(rows * columns, config.block),)
        spread_kernel[grid](mixed, grad, rows, columns, BLOCK=config.block, **config.options)

    def mix(how: Config) -> None:
        if how == SUM:
            found["x"] = tap_sum(mixed, values, _by_input(x, taps, outputs), **size)
        else:
            weights = _weights(values, taps, outputs, inputs)
            found["x"] = (weights.t() @ mixed.flatten(2)).view(x.shape)

    def sum_pixels(how: Config) -> None:
        if how == SUM:
            found["values"] = weight_grad(mixed, x, _by_mixed(x, taps, outputs), **size)
        else:
            products = _pixel_products(mixed.flatten(2), x.flatten(2))
            found["values"] = _take(products, _places(taps, outputs, inputs)[1])

    with on_device_of(x):
        run("up_spread", tuple(grad.shape), for_interpreter(SPREAD_CONFIGS, rows * columns), launch)
        problem, ways = (*x.shape, outputs, len(taps)), _ways(x, outputs, len(taps))
        if needs_values:
            run("up_weight_grad", problem, ways, sum_pixels)
        if needs_x:
            run("up_unmix", problem, ways, mix)
    return found["x"], found["values"]


def _ways(x: Tensor, outputs: int, taps: int) -> tuple[Config, ...]:
    """The ways of mixing the channels that may be faster, first the one for images that were not measured."""
    if 2 * taps >= 9 * outputs * x.shape[1]:
        return (PRODUCT,)
    return (PRODUCT, SUM) if x.shape[2] * x.shape[3] >= PRODUCT_PIXELS else (SUM, PRODUCT)


def _pixel_products(mixed: Tensor, x: Tensor) -> Tensor:
    """[O * 9, C]: products of [N, O * 9, P] and [N, C, P], added over images and chunks of pixels."""
    n, _, pixels = x.shape
    chunks = _MOST_CHUNKS
    while pixels % chunks:
        chunks //= 2
    a = mixed.unflatten(2, (chunks, -1)).transpose(1, 2).flatten(0, 1)
    b = x.unflatten(2, (chunks, -1)).permute(0, 2, 3, 1).flatten(0, 1)
    return torch.bmm(a, b).sum(0) if n * chunks > 1 else a[0] @ b[0]


def _weights(values: Tensor, taps: Tensor, outputs: int, inputs: int) -> Tensor:
    """[O * 9, C], the dropped ones zero."""
    return _take(values, _places(taps, outputs, inputs)[0]).view(outputs * 9, inputs)


def _take(values: Tensor, places: Tensor) -> Tensor:
    """:func:`take_kernel`."""
    out = values.new_empty(len(places))

    def launch(config: Config) -> None:
        grid = (triton.cdiv(len(places), config.block),)
        take_kernel[grid](out, values, places, len(places), BLOCK=config.block, **config.options)

    run("take", (len(places),), for_interpreter(TAKE_CONFIGS, len(places)), launch)
    return out


_known_places: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _places(taps: Tensor, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Of each weight [O * 9, C] its place among the values or -1; of each value that among the weights."""
    known = _known_places.setdefault(taps, {})
    key = outputs, inputs
    if key not in known:
        o, c, u, v = taps.detach().cpu().long().unbind(1)
        of_value = (o * 9 + u * 3 + v) * inputs + c
        of_weight = torch.full((outputs * 9 * inputs,), -1)
        of_weight[of_value] = torch.arange(len(taps))
        known[key] = of_weight.int().to(taps.device), of_value.int().to(taps.device)
    return known[key]


def _by_mixed(x: Tensor, taps: Tensor, outputs: int) -> TapIndex:
    _, inputs, rows, columns = x.shape

    def make(cpu: Tensor) -> tuple[Tensor, Tensor]:
        o, c, u, v = cpu.unbind(1)
        return o * 9 + u * 3 + v, c * rows * columns

    return tap_index(
        taps,
        ("mixed", rows, columns),
        segments=outputs * 9,
        source_elements=inputs * rows * columns,
        make=make,
        group=GROUP,
    )


def _by_input(x: Tensor, taps: Tensor, outputs: int) -> TapIndex:
    _, inputs, rows, columns = x.shape

    def make(cpu: Tensor) -> tuple[Tensor, Tensor]:
        o, c, u, v = cpu.unbind(1)
        return c, (o * 9 + u * 3 + v) * rows * columns

    return tap_index(
        taps,
        ("unmixed", rows, columns),
        segments=inputs,
        source_elements=outputs * 9 * rows * columns,
        make=make,
        group=GROUP,
    )
