"""The Deep Decoder for an image; oes_fast.fresh_generator makes it and all other networks."""

from __future__ import annotations

from torch import Tensor

from oes_fast.models import DeepDecoder
from oes_fast.pipelines.transfer import fresh_generator


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
    net, z = fresh_generator(noisy, model="deep_decoder", options={"k": k}, seed=seed)
    assert isinstance(net, DeepDecoder)
    return net, z
