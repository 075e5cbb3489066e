"""Dense convolutions in chains against PyTorch, at the sizes where Winograd's form takes over.

Which form a layer takes follows from its sizes alone. The activations are smooth: where a pixel crosses the
kink of another, rounding alone changes the gradient.
"""

from __future__ import annotations

import pytest
import torch
from kernel_backends import require
from test_chain import agree, differentiate, networks

pytestmark = pytest.mark.cpu_kernel

# Channels, taps of a row, how the images are halved, size. Each level has two convolutions, one that halves.
SHAPES = (
    ((1,), 5, "stride", (64, 64)),  # one channel: the direct sum
    ((20,), 5, "stride", (64, 96)),
    ((19, 23), 5, "avg", (75, 142)),  # odd sizes, channels that fill no block
    ((21, 18), 5, "stride", (141, 67)),
    ((37,), 3, "stride", (66, 150)),  # 3 x 3, stride 1
    ((45, 34), 3, "avg", (70, 61)),
    ((17, 64), 5, "stride", (16, 400)),  # few rows of tiles
    ((64, 17), 5, "stride", (200, 18)),  # few tiles in a row
    ((128,), 5, "stride", (40, 40)),  # fewer tiles than strips for every thread: planes in groups
    ((2, 40, 3, 40), 5, "stride", (128, 128)),  # many channels to few
    ((24, 29), 5, "stride", (200, 150)),  # many strips: sums of the weights' gradients in shares
    ((64, 70), 5, "avg", (32, 36)),  # halved in small tiles
    ((50,), 3, "avg", (90, 106)),  # 3 x 3, odd sizes
)
# Relative to the largest element; most of the rounding is that of the norms.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}


def options_of(shape):
    channels, kernel, mode, size = shape
    options = {"num_channels_down": channels, "filter_size_down": kernel, "downsample_mode": mode}
    return options | {"act_fun": "SiLU"}, size, 1.0


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_plain_pytorch_with_any_number_of_threads(shape, dtype):
    require("cpu")
    _, fast, z = networks(options_of(shape), dtype)
    plain, _, _ = networks(options_of(shape), torch.float64)
    with torch.no_grad():
        plain.weights.copy_(fast.weights)
    buffers = [buffer.clone() for _, buffer in fast.dense_buffers()]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                for (_, buffer), value in zip(fast.dense_buffers(), buffers, strict=True):
                    buffer.copy_(value)
            results.append(differentiate(fast, z))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    ours = [t.double() if t.is_floating_point() else t for t in results[0]]
    agree(ours, differentiate(plain, z.double()), TOLERANCE[dtype])
