"""Where taps read: csrc/common/tap_offsets.h against a picture of it, and the Triton kernels against that."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import require

pytestmark = pytest.mark.cpu_kernel

SHAPES = ((1, 3, 3), (1, 5, 2), (2, 3, 3), (2, 5, 4))  # stride, kernel rows and columns
INPUTS, OUTPUTS, ROWS, COLUMNS = 3, 4, 11, 14  # of a plane of the source


def all_taps(kernel_rows, kernel_columns):
    """(o, c, u, v) of every weight."""
    return torch.cartesian_prod(*map(torch.arange, (OUTPUTS, INPUTS, kernel_rows, kernel_columns))).int()


@pytest.mark.parametrize(("stride", "kernel_rows", "kernel_columns"), SHAPES)
@pytest.mark.parametrize("row_major", [False, True])
def test_a_tap_reads_its_pixel(stride, kernel_rows, kernel_columns, row_major):
    require("cpu")
    from oes_fast import _C

    source = torch.arange(INPUTS * ROWS * stride * COLUMNS * stride).view(1, INPUTS, ROWS * stride, -1)
    planes = torch.nn.functional.pixel_unshuffle(source.double(), stride)[0].long()
    memory = (planes.transpose(0, 1) if row_major else planes).flatten()
    places = _C.TapPlanes(INPUTS, stride, ROWS, COLUMNS, row_major)
    for _, c, u, v in all_taps(kernel_rows, kernel_columns).tolist():
        assert memory[places.offset_of(c, u, v)] == source[0, c, u, v]
        assert planes[places.plane_of(c, u, v), u // stride, v // stride] == source[0, c, u, v]


@pytest.mark.parametrize(("stride", "kernel_rows", "kernel_columns"), SHAPES)
def test_triton_reads_where_the_cpu_reads(stride, kernel_rows, kernel_columns, monkeypatch):
    require("cpu")
    pytest.importorskip("triton")
    from oes_fast.kernels import sparse_conv2d

    from oes_fast import _C

    taps = all_taps(kernel_rows, kernel_columns)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    class Found(Exception):
        pass

    def tap_index(taps, key, *, make, **sizes):
        found[key[0]] = make(taps.long())
        raise Found

    monkeypatch.setattr(sparse_conv2d, "tap_index", tap_index)
    top, left = _C.tap_margin(kernel_rows, stride), _C.tap_margin(kernel_columns, stride)
    monkeypatch.setattr(
        sparse_conv2d,
        "frame",
        lambda grad, rows, columns, *margins: grad.new_empty(1, OUTPUTS, rows, columns),
    )
    source = torch.empty(1, INPUTS, stride * stride, ROWS, COLUMNS)
    grad = torch.empty(1, OUTPUTS, ROWS - top, COLUMNS - left)
    with pytest.raises(Found):
        sparse_conv2d._by_output(source, taps, OUTPUTS)
    with pytest.raises(Found):
        sparse_conv2d._input_gradient(grad, source, torch.empty(len(taps)), taps, kernel_rows, kernel_columns)

    planes = _C.TapPlanes(INPUTS, stride, ROWS, COLUMNS)
    padded = _C.PaddedGradPlanes(stride, ROWS + top, COLUMNS + left, top, left)
    rows = taps.tolist()
    outputs, offsets = found["output"]
    assert outputs.tolist() == [o for o, _, _, _ in rows]
    assert offsets.tolist() == [planes.offset_of(c, u, v) for _, c, u, v in rows]
    read, offsets = found["input"]
    assert read.tolist() == [planes.plane_of(c, u, v) for _, c, u, v in rows]
    assert offsets.tolist() == [padded.offset_of(o, u, v) for o, _, u, v in rows]
