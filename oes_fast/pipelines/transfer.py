"""Fresh generators for an image, and masks carried to another image (Ghosh et al. 2024, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import FLOAT_DTYPES, check_tensor
from oes_fast.errors import InputError
from oes_fast.mask import Mask
from oes_fast.models import ImageGenerator, generator
from oes_fast.models.registry import find_model
from oes_fast.pipelines.train import TrainResult, train_sparse
from oes_fast.recipe import Recipe


def fresh_generator(
    noisy: Tensor,
    *,
    shape: Sequence[int] | None = None,
    model: str = "skip",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[ImageGenerator, Tensor]:
    """A generator with fresh weights for an image, and its input; by default the published one of OES.

    Args:
        noisy: image, shape [1, C, H, W] or of the model's dimensions. With ``shape``, what was measured of
            the image: any shape, real or complex; its dtype and device count alone.
        shape: of the image that the network is to give: (C, H, W), without the batch; None for that of
            ``noisy``.
        model: one of :data:`oes_fast.models.MODELS`.
        options: of the model, by name; see :func:`oes_fast.models.generator`.
        seed: of both, in [0, 2^64).

    Returns:
        (net with C output channels, z), dtype (its real counterpart where it is complex) and device of
        ``noisy``. The z of the default is [1, 32, H, W].

    Raises:
        InputError: no such model or option, or ``noisy`` is no image for it.

    Example:
        >>> net, z = oes.fresh_generator(torch.rand(1, 3, 64, 64), seed=0)
        >>> z.shape, sum(p.numel() for p in net.parameters())
        (torch.Size([1, 32, 64, 64]), 3008867)
        >>> net, z = oes.fresh_generator(torch.rand(1, 3, 64, 64), model="unet", options={"feature_scale": 8})
        >>> net(z).shape
        torch.Size([1, 3, 64, 64])
    """
    if shape is None:
        check_tensor("noisy", noisy, ndim=2 + find_model(model).dims)
        shape = noisy.shape[1:]
    else:
        check_tensor("noisy", noisy, dtypes=(*FLOAT_DTYPES, torch.complex64, torch.complex128))
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"options: expected a dict of options by name, got {type(options).__name__}")
    find_model(model).check(options or {})
    return generator(
        model, shape, seed=seed, dtype=noisy.dtype.to_real(), device=noisy.device, **(options or {})
    )


def transfer_mask(
    mask: Mask, noisy: Tensor, *, shape: Sequence[int] | None = None, seed: int = 0, **train: Any
) -> TrainResult:
    """Restore an image with a mask that was found on another one: fresh weights, no search.

    Args:
        mask: found on any image of as many channels, with a network of :func:`oes_fast.fresh_generator` or
            :func:`oes_fast.models.generator`: its settings say which; masks that do not say are those of the
            published generator.
        noisy: image to restore, shape [1, C, H, W].
        shape: of the image, where ``noisy`` is another measurement; see :func:`oes_fast.fresh_generator`.
        seed: of the fresh weights, the input and the noise on it.
        **train: arguments of :func:`oes_fast.train_sparse`.

    Returns:
        :class:`TrainResult`.

    Raises:
        InputError: ``mask`` is none.
        MaskMismatchError: the mask belongs to another network, such as one for grey images.
        OESError: as :func:`oes_fast.train_sparse`.

    Example:
        >>> mask = oes.Mask.load("mask.safetensors")  # doctest: +SKIP
        >>> other = oes.load_image("other.png").pixels  # doctest: +SKIP
        >>> oes.save_image("restored.png", oes.transfer_mask(mask, other).output)  # doctest: +SKIP
    """
    if not isinstance(mask, Mask):
        raise InputError(f"mask: expected an oes_fast.Mask, got {type(mask).__name__}")
    made = mask.recipe or Recipe("skip")
    net, z = fresh_generator(noisy, shape=shape, model=made.name, options=made.options, seed=seed)
    return train_sparse(net, mask, z, noisy, seed=seed, **train)
