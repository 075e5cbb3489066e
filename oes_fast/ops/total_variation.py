"""Total variation of an image: checks; plain PyTorch computes it on every device."""

from __future__ import annotations

from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_tensor
from oes_fast.errors import InputError


def total_variation(image: Tensor) -> Tensor:
    """Anisotropic total variation: the mean absolute difference of neighbours, added up over the directions.

    Of an image [N, C, H, W] it is mean |x[i + 1, j] - x[i, j]| + mean |x[i, j + 1] - x[i, j]|, each mean over
    all pairs; signals [N, C, L] have one direction and volumes [N, C, D, H, W] three. Values in 0..1 give a
    number between 0 and the number of directions, whatever the size of the image.

    Args:
        image: shape [N, C, L], [N, C, H, W] or [N, C, D, H, W], float32 or float64, on any device.

    Returns:
        Scalar of the dtype of ``image``, on its device; differentiable, with derivative 0 where neighbours
        are equal.

    Raises:
        InputError: no such tensor.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
        >>> oes.functional.total_variation(image)
        tensor(1.)
    """
    check_tensor("image", image)
    if not 3 <= image.ndim <= 5 or image.numel() == 0:
        raise InputError(f"image: expected shape (N, C, H, W), without empty ones, got {tuple(image.shape)}")
    return reference.total_variation(image)
