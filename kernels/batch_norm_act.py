"""Triton kernels of oes_fast/reference/batch_norm_act.py: two passes over the image in either direction.

The first sums chunks of each channel, without atomics; the second puts the chunks of its channel together
again in every program and writes the result, padded. The gradient recomputes what it needs from the input.
Channels that fit into one program take one pass (oes_fast/kernels/batch_norm_act_whole.py).
"""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels import batch_norm_act_whole as whole
from oes_fast.kernels.batch_norm_act_math import activate, affine, derivative, gradient_of_image, reflect
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.tuning import Config, for_interpreter, run
from torch import Tensor

# Integers that no load's width hangs on, and addresses that are read one number at a time, are compiled for
# in general: every special case of each would be one more compilation.
_GENERAL = {
    "do_not_specialize": ["channels", "chunks", "blocks_of_chunk"],
    "do_not_specialize_on_alignment": ["weight_ptr", "bias_ptr"],
}

# The first pass loads whole blocks in a loop, the second one block a program.
SUM_CONFIGS = (
    Config(block=1024, warps=4),
    Config(block=2048, warps=8),
    Config(block=512, warps=4),
)
MAP_CONFIGS = (
    Config(block=512, warps=4),
    Config(block=1024, warps=4),
    Config(block=2048, warps=8),
)
# A padded gradient is folded from nine places: four pixels a thread take all registers there are.
FOLD_CONFIGS = (Config(block=512, warps=4), Config(block=256, warps=4), Config(block=1024, warps=8))
_PROGRAMS = 1024  # of the first pass, where there are pixels for them
_MOST_CHUNKS = 64  # of a channel, a power of two: every program of the second pass reads them all


@triton.jit(**_GENERAL)
def moments_kernel(
    partial_ptr, x_ptr, images, channels, pixels, chunks, blocks_of_chunk, BLOCK: tl.constexpr
):
    """Mean and sum of squares about it of one chunk of a channel, to partial [2, channels, chunks].

    Summed about the channel's first value, so that a large mean does not eat the digits of the variance.
    """
    channel, chunk = tl.program_id(0), tl.program_id(1)
    blocks = tl.cdiv(pixels, BLOCK)
    first = chunk * blocks_of_chunk
    last = tl.minimum(first + blocks_of_chunk, blocks * images)
    middle = tl.load(x_ptr + channel.to(tl.int64) * pixels)
    total = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    counts = tl.zeros((BLOCK,), tl.int32)
    for block in range(first, last):
        image = (block // blocks).to(tl.int64)
        pixel = block % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        x = tl.load(x_ptr + (image * channels + channel) * pixels + pixel, mask=inside, other=0.0)
        x = tl.where(inside, x - middle, 0.0)
        total += x
        squares += x * x
        counts += inside.to(tl.int32)
    count = tl.maximum(tl.sum(counts, axis=0), 1).to(tl.float32)
    mean = tl.sum(total, axis=0) / count
    at = partial_ptr + channel * chunks + chunk
    tl.store(at, middle + mean)
    tl.store(at + channels * chunks, tl.maximum(tl.sum(squares, axis=0) - count * mean * mean, 0.0))


@triton.jit
def _statistics(
    partial_ptr,
    channel,
    images,
    channels,
    pixels,
    chunks,
    blocks_of_chunk,
    SUM_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Mean and biased variance of a channel from its chunks (Chan, Golub and LeVeque 1983)."""
    chunk = tl.arange(0, CHUNKS)
    there = chunk < chunks
    mean = tl.load(partial_ptr + channel * chunks + chunk, mask=there, other=0.0)
    squares = tl.load(partial_ptr + (channels + channel) * chunks + chunk, mask=there, other=0.0)
    blocks = tl.cdiv(pixels, SUM_BLOCK)
    first = chunk * blocks_of_chunk
    last = tl.minimum(first + blocks_of_chunk, blocks * images)
    # Every image's last block is short by what is missing to a whole one.
    missing = blocks * SUM_BLOCK - pixels
    count = (last - first) * SUM_BLOCK - (last // blocks - first // blocks) * missing
    count = tl.where(there, count, 0).to(tl.float32)
    values = 1.0 * images * pixels
    middle = tl.load(partial_ptr + channel * chunks)
    average = middle + tl.sum(tl.where(there, (mean - middle) * count, 0.0), axis=0) / values
    apart = tl.where(there, mean - average, 0.0)
    return average, (tl.sum(squares, axis=0) + tl.sum(count * apart * apart, axis=0)) / values


@triton.jit(**_GENERAL)
def forward_kernel(
    y_ptr,
    mean_ptr,
    var_ptr,
    x_ptr,
    partial_ptr,
    weight_ptr,
    bias_ptr,
    given_mean_ptr,
    given_var_ptr,
    images,
    channels,
    rows,
    columns,
    chunks,
    blocks_of_chunk,
    eps,
    slope,
    OF_BATCH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PAD: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the padded result; the first of each channel stores its statistics."""
    out_columns = columns + 2 * PAD
    out_pixels = (rows + 2 * PAD) * out_columns
    blocks = tl.cdiv(out_pixels, BLOCK)
    program = tl.program_id(0)
    plane = program // blocks
    channel = plane % channels
    if OF_BATCH:
        mean, var = _statistics(
            partial_ptr, channel, images, channels, rows * columns, chunks, blocks_of_chunk, SUM_BLOCK, CHUNKS
        )
    else:
        mean, var = tl.load(given_mean_ptr + channel), tl.load(given_var_ptr + channel)
    if program % blocks == 0 and plane < channels:
        tl.store(mean_ptr + channel, mean)
        tl.store(var_ptr + channel, var)
    scale = 1.0 / tl.sqrt_rn(var + eps)
    if HAS_WEIGHT:
        scale *= tl.load(weight_ptr + channel)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < out_pixels
    at = pixel
    if PAD > 0:
        row = reflect(pixel // out_columns, rows, PAD)
        at = row * columns + reflect(pixel % out_columns, columns, PAD)
    x = tl.load(x_ptr + plane.to(tl.int64) * rows * columns + at, mask=inside, other=0.0)
    z = (x - mean) * scale
    if HAS_BIAS:
        z += tl.load(bias_ptr + channel)
    y = activate(z, slope, ACTIVATION)
    tl.store(y_ptr + plane.to(tl.int64) * out_pixels + pixel, y, mask=inside)


@triton.jit
def _normal(x_ptr, plane, pixel, inside, pixels, mean, scale):
    """The normalised image."""
    x = tl.load(x_ptr + plane * pixels + pixel, mask=inside, other=0.0)
    return tl.where(inside, (x - mean) * scale, 0.0)


@triton.jit(**_GENERAL)
def gradient_sums_kernel(
    partial_ptr,
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    images,
    channels,
    rows,
    columns,
    chunks,
    blocks_of_chunk,
    eps,
    slope,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of dz and of dz times the normalised image over one chunk, to partial [2, channels, chunks]."""
    channel, chunk = tl.program_id(0), tl.program_id(1)
    pixels = rows * columns
    grad_pixels = (rows + 2 * PAD) * (columns + 2 * PAD)
    blocks = tl.cdiv(pixels, BLOCK)
    first = chunk * blocks_of_chunk
    last = tl.minimum(first + blocks_of_chunk, blocks * images)
    mean = tl.load(mean_ptr + channel)
    scale = 1.0 / tl.sqrt_rn(tl.load(var_ptr + channel) + eps)
    weight, bias = affine(weight_ptr, bias_ptr, channel, HAS_WEIGHT, HAS_BIAS)
    total = tl.zeros((BLOCK,), tl.float32)
    products = tl.zeros((BLOCK,), tl.float32)
    for block in range(first, last):
        plane = (block // blocks).to(tl.int64) * channels + channel
        pixel = block % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        normal = _normal(x_ptr, plane, pixel, inside, pixels, mean, scale)
        dz = gradient_of_image(grad_ptr + plane * grad_pixels, pixel, inside, rows, columns, PAD)
        dz *= derivative(normal * weight + bias, slope, ACTIVATION)
        total += dz
        products += dz * normal
    at = partial_ptr + channel * chunks + chunk
    tl.store(at, tl.sum(total, axis=0))
    tl.store(at + channels * chunks, tl.sum(products, axis=0))


@triton.jit(**_GENERAL)
def backward_kernel(
    grad_x_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    partial_ptr,
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    images,
    channels,
    rows,
    columns,
    chunks,
    eps,
    slope,
    OF_BATCH: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PAD: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the input's gradient; the first of each channel stores those of gamma and beta."""
    pixels = rows * columns
    grad_pixels = (rows + 2 * PAD) * (columns + 2 * PAD)
    blocks = tl.cdiv(pixels, BLOCK)
    if not NEEDS_X:  # one program a channel has nothing else to do
        blocks = 1
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    channel = program // blocks % channels
    chunk = tl.arange(0, CHUNKS)
    there = chunk < chunks
    total = tl.sum(tl.load(partial_ptr + channel * chunks + chunk, mask=there, other=0.0), axis=0)
    at = partial_ptr + (channels + channel) * chunks + chunk
    products = tl.sum(tl.load(at, mask=there, other=0.0), axis=0)
    if program % blocks == 0 and plane < channels:
        if NEEDS_WEIGHT:
            tl.store(grad_weight_ptr + channel, products)
        if NEEDS_BIAS:
            tl.store(grad_bias_ptr + channel, total)
    if NEEDS_X:
        mean = tl.load(mean_ptr + channel)
        scale = 1.0 / tl.sqrt_rn(tl.load(var_ptr + channel) + eps)
        weight, bias = affine(weight_ptr, bias_ptr, channel, HAS_WEIGHT, HAS_BIAS)
        pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < pixels
        normal = _normal(x_ptr, plane, pixel, inside, pixels, mean, scale)
        dz = gradient_of_image(grad_ptr + plane * grad_pixels, pixel, inside, rows, columns, PAD)
        dz *= derivative(normal * weight + bias, slope, ACTIVATION)
        if OF_BATCH:
            values = 1.0 * images * pixels
            dz -= total / values + normal * (products / values)
        tl.store(grad_x_ptr + plane * pixels + pixel, dz * (weight * scale), mask=inside)


def _chunks(config: Config, images: int, channels: int, pixels: int) -> tuple[int, int]:
    """(chunks of a channel, blocks of a chunk)."""
    blocks = images * triton.cdiv(pixels, config.block)
    chunks = max(1, min(_MOST_CHUNKS, blocks, _PROGRAMS // max(1, channels)))
    of_chunk = triton.cdiv(blocks, chunks)
    return triton.cdiv(blocks, of_chunk), of_chunk


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    activation: int,
    slope: float,
    pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(padded result, mean, biased variance), float32, contiguous arguments."""
    images, channels, rows, columns = x.shape
    out_rows, out_columns = rows + 2 * pad, columns + 2 * pad
    y = x.new_empty(images, channels, out_rows, out_columns)
    used_mean, used_var = x.new_empty(channels), x.new_empty(channels)
    if y.numel() == 0:  # no image to take statistics of: those that are given
        if mean is not None and var is not None:
            return y, mean.clone(), var.clone()
        return y, used_mean, used_var
    pixels, of_batch = rows * columns, mean is None
    config = whole.config_of(images * pixels, pad)
    if of_batch and config is not None:
        with on_device_of(x):
            whole.batch_norm_act(y, used_mean, used_var, x, weight, bias, eps, activation, slope, pad, config)
        return y, used_mean, used_var
    # The chunks are cut by one configuration, since the second pass has to know them.
    (by_sum, *_) = for_interpreter(SUM_CONFIGS, pixels)
    chunks, of_chunk = _chunks(by_sum, images, channels, pixels)
    partial = x.new_empty(2, channels, chunks)

    def launch(config: Config) -> None:
        forward_kernel[(images * channels * triton.cdiv(out_rows * out_columns, config.block),)](
            y,
            used_mean,
            used_var,
            x,
            partial,
            weight,
            bias,
            mean,
            var,
            images,
            channels,
            rows,
            columns,
            chunks,
            of_chunk,
            eps,
            slope,
            OF_BATCH=of_batch,
            HAS_WEIGHT=weight is not None,
            HAS_BIAS=bias is not None,
            ACTIVATION=activation,
            PAD=pad,
            SUM_BLOCK=by_sum.block,
            CHUNKS=_MOST_CHUNKS,
            BLOCK=config.block,
            **config.options,
        )

    with on_device_of(x):
        if of_batch:
            moments_kernel[(channels, chunks)](
                partial,
                x,
                images,
                channels,
                pixels,
                chunks,
                of_chunk,
                BLOCK=by_sum.block,
                **by_sum.options,
            )
        problem = (*x.shape, pad, activation)
        run("batch_norm_act", problem, for_interpreter(MAP_CONFIGS, out_rows * out_columns), launch)
    return y, used_mean, used_var


def batch_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: int,
    slope: float,
    pad: int,
    of_batch: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, float32; [0] for one that is not needed."""
    images, channels, rows, columns = x.shape
    grad_x = x.new_empty(x.shape if needs_x else 0)
    grad_weight = x.new_empty(channels if needs_weight else 0)
    grad_bias = x.new_empty(channels if needs_bias else 0)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    pixels, grads = rows * columns, (grad_x, grad_weight, grad_bias)
    config = whole.config_of(images * pixels, pad)
    if config is not None:
        with on_device_of(x):
            whole.batch_norm_act_backward(
                grads, grad, x, weight, bias, mean, var, eps, activation, slope, pad, of_batch, config
            )
        return grads
    configs = for_interpreter(FOLD_CONFIGS if pad else SUM_CONFIGS, pixels)
    maps = for_interpreter(FOLD_CONFIGS if pad else MAP_CONFIGS, pixels)
    most = max(_chunks(config, images, channels, pixels)[0] for config in configs)
    partial, chunks = x.new_empty(2 * channels * most), 0
    given = {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    options = {**given, "ACTIVATION": activation, "PAD": pad}

    def launch_sums(config: Config) -> None:
        nonlocal chunks
        chunks, of_chunk = _chunks(config, images, channels, pixels)
        gradient_sums_kernel[(channels, chunks)](
            partial,
            grad,
            x,
            weight,
            bias,
            mean,
            var,
            images,
            channels,
            rows,
            columns,
            chunks,
            of_chunk,
            eps,
            slope,
            **options,
            BLOCK=config.block,
            **config.options,
        )

    def launch(config: Config) -> None:
        programs = images * channels * triton.cdiv(pixels, config.block) if needs_x else channels
        backward_kernel[(programs,)](
            grad_x,
            grad_weight,
            grad_bias,
            partial,
            grad,
            x,
            weight,
            bias,
            mean,
            var,
            images,
            channels,
            rows,
            columns,
            chunks,
            eps,
            slope,
            OF_BATCH=of_batch,
            NEEDS_X=needs_x,
            NEEDS_WEIGHT=needs_weight,
            NEEDS_BIAS=needs_bias,
            **options,
            CHUNKS=_MOST_CHUNKS,
            BLOCK=config.block,
            **config.options,
        )

    with on_device_of(x):
        problem = (*x.shape, pad, activation)
        run("batch_norm_act_sums", problem, configs, launch_sums)
        run("batch_norm_act_backward", problem, maps, launch)
    return grads
