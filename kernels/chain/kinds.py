"""What the kernels of a chain may be told to do, as numbers that a kernel is compiled for."""

from __future__ import annotations

from typing import Final

import triton.language as tl

# How a pixel of an image is read.
READ_PLAIN: Final = tl.constexpr(0)  # as it is
READ_VALUE: Final = tl.constexpr(1)  # normalised and activated
READ_SECOND: Final = tl.constexpr(2)  # and normalised once more
READ_GRAD: Final = tl.constexpr(3)  # the gradient of a norm's input

ACT_LEAKY: Final = tl.constexpr(0)
ACT_ELU: Final = tl.constexpr(1)
ACT_SILU: Final = tl.constexpr(2)

OUT_LEAKY: Final = tl.constexpr(0)
OUT_SIGMOID: Final = tl.constexpr(1)

# What lies around an image that is read.
PAD_NONE: Final = tl.constexpr(0)  # nothing that is read
PAD_ZEROS: Final = tl.constexpr(1)
PAD_REFLECT: Final = tl.constexpr(2)
PAD_REPLICATE: Final = tl.constexpr(3)

# What the last program of a launch does.
FINALISE_NONE: Final = tl.constexpr(0)
NORM_FORWARD: Final = tl.constexpr(1)
NORM_BACKWARD: Final = tl.constexpr(2)
LOSS: Final = tl.constexpr(3)
SHIFT_BACKWARD: Final = tl.constexpr(4)

PROLOGUE_NUMBERS: Final = tl.constexpr(
    6
)  # of a channel: mean, scale, shift of the first norm, then the second's
GRAD_NUMBERS: Final = tl.constexpr(4)  # of a channel: mean, a, b, c
PARTIAL_NUMBERS: Final = tl.constexpr(3)  # of a channel and a chunk of its pixels
