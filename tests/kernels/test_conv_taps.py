"""The taps of every kind of convolution of a Triton chain, summed in plain PyTorch, against autograd."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton", reason="Triton is not installed")

from oes_fast.kernels.chain import kinds
from oes_fast.kernels.chain.conv_taps import conv_taps
from oes_fast.kernels.chain.specs import ConvKind, ConvSpec, Padding

INPUTS, OUTPUTS, ROWS, COLUMNS = 2, 3, 8, 7
MODES = {Padding.ZEROS: "constant", Padding.REFLECT: "reflect", Padding.REPLICATE: "replicate"}
BORDERS = ((0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3))  # left, right, top, bottom
DIRECT = [
    ConvSpec(
        padding=mode,
        border=list(border),
        box=box,
        stride=stride,
        kernel_rows=kernel[0],
        kernel_columns=kernel[1],
    )
    for kernel, stride, box, mode, border in itertools.product(
        ((1, 1), (2, 2), (3, 3), (5, 5), (3, 1)), (1, 2), (False, True), MODES, BORDERS
    )
    if any(border) or mode == Padding.ZEROS
]
UP = [
    ConvSpec(kind=ConvKind.UPSAMPLE, padding=mode, kernel_rows=3, kernel_columns=3)
    for mode in (Padding.ZEROS, Padding.REPLICATE)
]


def convolved(spec, image, weight):
    """The convolution by PyTorch's operations."""
    if spec.kind == ConvKind.UPSAMPLE:
        image = functional.interpolate(image[None], scale_factor=2)
        return functional.conv2d(functional.pad(image, (1, 1, 1, 1), mode=MODES[spec.padding]), weight)[0]
    image = functional.pad(image[None], spec.border, mode=MODES[spec.padding])
    if spec.box:
        image = 4 * functional.avg_pool2d(image, 2, stride=1)
    return functional.conv2d(image, weight, stride=spec.stride)[0]


def continued(index, size, padding):
    """(rows or columns inside the image, whether there is one)."""
    if padding == kinds.PAD_REFLECT.value:
        index = index.abs()
        index = torch.where(index < size, index, 2 * (size - 1) - index)
    elif padding == kinds.PAD_REPLICATE.value:
        index = index.clamp(0, size - 1)
    inside = (index >= 0) & (index < size)
    if padding != kinds.PAD_ZEROS.value:
        assert inside.all()
    return index.clamp(0, size - 1), inside


def pixels_read(total, image):
    """What every tap reads, [taps, cell_rows, cell_columns]."""
    taps = [torch.from_numpy(column) for column in total.taps[:5]]
    rows = taps[3][:, None] - total.top + total.step * torch.arange(total.cell_rows)
    columns = taps[4][:, None] - total.left + total.step * torch.arange(total.cell_columns)
    assert rows.max() - (total.image_rows - 1) <= max(total.bottom, 0)
    assert columns.max() - (total.image_columns - 1) <= max(total.right, 0)
    rows, row_inside = continued(rows, total.image_rows, total.padding)
    columns, column_inside = continued(columns, total.image_columns, total.padding)
    pixels = image[taps[2][:, None, None], rows[:, :, None], columns[:, None, :]]
    return pixels * (row_inside[:, :, None] & column_inside[:, None, :])


def summed(total, image, weights):
    """The sum over taps, [outputs, rows, columns]."""
    flat = torch.from_numpy(total.taps.weights)
    products = pixels_read(total, image) * (weights[flat] * (flat >= 0)).sum(1)[:, None, None]
    phases = total.side**2
    lists = torch.from_numpy(total.taps.output * phases + total.taps.phase)
    cells = products.new_zeros(total.outputs * phases, *products.shape[1:]).index_add(0, lists, products)
    result = functional.pixel_shuffle(cells, total.side)[:, total.crop_top :, total.crop_left :]
    assert result.shape[1] >= total.rows
    assert result.shape[2] >= total.columns
    return result[:, : total.rows, : total.columns]


def weights_grad(total, image, grad, count):
    """Gradient of the weights by the taps of the forward pass."""
    cells = functional.pixel_unshuffle(grad, total.side).unflatten(0, (total.outputs, -1))
    assert cells.shape[2:] == (total.cell_rows, total.cell_columns)
    output, phase = torch.from_numpy(total.taps.output), torch.from_numpy(total.taps.phase)
    each = (cells[output, phase] * pixels_read(total, image)).sum((1, 2))
    flat = torch.from_numpy(total.taps.weights)
    found = grad.new_zeros(count + 1)  # the last for -1
    return found.index_add(0, flat.flatten() % (count + 1), each.repeat_interleave(flat.shape[1]))[:count]


def folded(conv, grad):
    """The gradient of an image from that of the image with its border."""
    rows, _ = continued(torch.arange(grad.shape[1]) - conv.top, ROWS, conv.padding)
    columns, _ = continued(torch.arange(grad.shape[2]) - conv.left, COLUMNS, conv.padding)
    by_rows = grad.new_zeros(grad.shape[0], ROWS, grad.shape[2]).index_add(1, rows, grad)
    return grad.new_zeros(grad.shape[0], ROWS, COLUMNS).index_add(2, columns, by_rows)


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize(
    "spec",
    [*DIRECT, *UP],
    ids=lambda s: (
        f"{s.kind.name}-{s.kernel_rows}x{s.kernel_columns}-{s.stride}-{s.box}-{s.padding.name}-{s.border}"
    ),
)
def test_taps_are_the_convolution(spec, density):
    generator = torch.Generator().manual_seed(0)
    shape = OUTPUTS, INPUTS, spec.kernel_rows, spec.kernel_columns
    flat = torch.rand(5 + math.prod(shape), generator=generator, dtype=torch.float64)
    keep = torch.rand(shape, generator=generator) < density
    spec = dataclasses.replace(spec, outputs=OUTPUTS)
    if density == 1:
        spec.first_weight = 5
    else:
        spec.taps = torch.nonzero(keep).flatten().tolist()
        spec.weights = (5 + torch.nonzero(keep.flatten())).flatten().tolist()
    image = torch.rand(INPUTS, ROWS, COLUMNS, generator=generator, dtype=torch.float64).requires_grad_()
    weight = (flat[5:].view(shape) * keep).requires_grad_()
    wanted = convolved(spec, image, weight)
    grad = torch.rand(wanted.shape, generator=generator, dtype=torch.float64)
    wanted_image, wanted_weight = torch.autograd.grad(wanted, (image, weight), grad)

    conv = conv_taps(spec, INPUTS, ROWS, COLUMNS)
    assert (conv.out_rows, conv.out_columns) == wanted.shape[1:]
    image = image.detach()
    torch.testing.assert_close(summed(conv.forward, image, flat), wanted, rtol=0, atol=1e-12)
    found = summed(conv.input_grad, grad, flat)
    if conv.folds:
        found = folded(conv, found)
    torch.testing.assert_close(found, wanted_image, rtol=0, atol=1e-12)
    found = weights_grad(conv.forward, image, grad, len(flat))[5:].view(shape)
    torch.testing.assert_close(found, wanted_weight * keep, rtol=0, atol=1e-12)
    for total in (conv.forward, conv.input_grad):
        order = np.lexsort(total.taps[4::-1])
        assert (order == np.arange(len(order))).all()
        places = np.stack(total.taps[:5])  # none twice
        assert np.unique(places, axis=1).shape == places.shape


def test_merged_taps_are_few():
    """16 for a box before 3 x 3, backward 4 for each phase; 16 for an up-sampling, forward 4 for each."""
    for box, kind in ((True, ConvKind.DIRECT), (False, ConvKind.UPSAMPLE)):
        spec = ConvSpec(kind, Padding.REPLICATE, box=box, stride=2 if box else 1, outputs=1, first_weight=0)
        spec.kernel_rows = spec.kernel_columns = 3
        conv = conv_taps(spec, 1, ROWS, COLUMNS)
        for total in (conv.forward, conv.input_grad):
            assert total.taps.weights.shape == (16, 4)


def test_nothing_lies_outside_a_pointwise_convolution():
    conv = conv_taps(ConvSpec(outputs=1, first_weight=0), 1, ROWS, COLUMNS)
    for total in (conv.forward, conv.input_grad):
        assert total.padding == kinds.PAD_NONE.value
        assert (total.top, total.bottom, total.cell_rows, total.cell_columns) == (0, 0, ROWS, COLUMNS)
