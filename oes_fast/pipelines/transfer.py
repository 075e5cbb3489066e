"""Fresh generators for an image, and masks carried to another image (Ghosh et al. 2024, section 5)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from oes_fast._checks import check_tensor
from oes_fast.mask import Mask
from oes_fast.models import Generator, skip
from oes_fast.noise import noise_input
from oes_fast.pipelines.train import TrainResult, train_sparse

INPUT_CHANNELS = 32


def fresh_generator(noisy: Tensor, *, seed: int = 0) -> tuple[Generator, Tensor]:
    """The published generator with fresh weights for an image, and its input.

    Args:
        noisy: image, shape [1, C, H, W].
        seed: of both, in [0, 2^64).

    Returns:
        (net with C output channels, z [1, 32, H, W]), dtype and device of ``noisy``.

    Example:
        >>> net, z = oes.fresh_generator(torch.rand(1, 3, 64, 64), seed=0)
        >>> z.shape, sum(p.numel() for p in net.parameters())
        (torch.Size([1, 32, 64, 64]), 3008867)
    """
    check_tensor("noisy", noisy, ndim=4)
    channels, height, width = noisy.shape[1:]
    net = skip(INPUT_CHANNELS, channels, seed=seed, dtype=noisy.dtype, device=noisy.device)
    z = noise_input(INPUT_CHANNELS, (height, width), seed=seed, dtype=noisy.dtype, device=noisy.device)
    return net, z


def transfer_mask(mask: Mask, noisy: Tensor, *, seed: int = 0, **train: Any) -> TrainResult:
    """Restore an image with a mask that was found on another one: fresh weights, no search.

    Args:
        mask: found on any image with the published generator and as many channels.
        noisy: image to restore, shape [1, C, H, W].
        seed: of the fresh weights, the input and the noise on it.
        **train: arguments of :func:`oes_fast.train_sparse`.

    Returns:
        :class:`TrainResult`.

    Raises:
        MaskMismatchError: the mask belongs to another network, such as one for grey images.
        OESError: as :func:`oes_fast.train_sparse`.

    Example:
        >>> mask = oes.Mask.load("mask.safetensors")  # doctest: +SKIP
        >>> other = oes.load_image("other.png").pixels  # doctest: +SKIP
        >>> oes.save_image("restored.png", oes.transfer_mask(mask, other).output)  # doctest: +SKIP
    """
    net, z = fresh_generator(noisy, seed=seed)
    return train_sparse(net, mask, z, noisy, seed=seed, **train)
