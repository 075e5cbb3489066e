"""The last layer of the generator with its loss: checks and choice of backend."""

from __future__ import annotations

from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_tensor
from oes_fast.errors import InputError


def output_head(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, sigmoid: bool = True
) -> tuple[Tensor, Tensor]:
    """1 x 1 convolution, sigmoid and mean squared error to the target.

    Args:
        x: features, float32 or float64, shape [N, C, H, W].
        weight: shape [O, C, 1, 1].
        bias: shape [O], or None.
        target: noisy image, shape [N, O, H', W'] with H' <= H and W' <= W; the output is cropped to it at
            the bottom and right.
        sigmoid: squash the output into (0, 1).

    Returns:
        (output of the target's shape, scalar loss mean((output - target)^2)); differentiable in ``x``,
        ``weight`` and ``bias``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("x", x, ndim=4)
    check_tensor("weight", weight, shape=(None, x.shape[1], 1, 1), like=x)
    if bias is not None:
        check_tensor("bias", bias, shape=(weight.shape[0],), like=x)
    check_tensor("target", target, shape=(x.shape[0], weight.shape[0], None, None), like=x)
    if target.numel() == 0:
        raise InputError(f"target: expected a pixel at least, got shape {tuple(target.shape)}")
    if target.shape[-2] > x.shape[-2] or target.shape[-1] > x.shape[-1]:
        raise InputError(
            f"target: expected at most {tuple(x.shape[-2:])} pixels as the features have, "
            f"got {tuple(target.shape[-2:])}"
        )
    return reference.output_head(x, weight, bias, target, sigmoid=sigmoid)
