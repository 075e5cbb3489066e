"""Fresh networks of the baselines for an image; the published generator is oes_fast.fresh_generator's."""

from __future__ import annotations

from torch import Tensor

from oes_fast._checks import check_integer, check_tensor
from oes_fast.models import DeepDecoder, deep_decoder, deep_decoder_input


def fresh_deep_decoder(noisy: Tensor, k: int = 5, *, seed: int = 0) -> tuple[DeepDecoder, Tensor]:
    """The Deep Decoder with fresh weights for an image, and its input.

    Args:
        noisy: image, shape [1, C, H, W]; where H or W is no multiple of 2^k, the network crops to it.
        k: number of layers that double the size, >= 1.
        seed: of both, in [0, 2^64).

    Returns:
        (net with C output channels, z [1, 128, ceil(H / 2^k), ceil(W / 2^k)]), dtype and device of ``noisy``.

    Raises:
        InputError: ``noisy`` is no such image, or a number is out of range.

    Example:
        >>> noisy = torch.rand(1, 3, 100, 64)
        >>> net, z = oes.baselines.fresh_deep_decoder(noisy, seed=0)
        >>> z.shape, net(z).shape
        (torch.Size([1, 128, 4, 2]), torch.Size([1, 3, 100, 64]))
    """
    check_tensor("noisy", noisy, ndim=4)
    channels, height, width = noisy.shape[1:]
    check_integer("k", k, minimum=1)
    size = (height, width)
    fits = height % 2**k == 0 and width % 2**k == 0
    net = deep_decoder(
        k,
        channels,
        size=None if fits else size,
        seed=seed,
        dtype=noisy.dtype,
        device=noisy.device,
    )
    return net, deep_decoder_input(net, size, seed=seed)
