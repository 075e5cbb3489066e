"""Classical denoisers to hold networks against: non-local means, total variation and BM3D.

They see the noisy image and its noise level alone. Their strengths are the multiples of the noise level that
did best, in whole tenths, on photographs of 256 x 256 pixels at a noise of 0.05 to 0.2.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oes_fast._checks import check_number, check_tensor
from oes_fast.errors import InputError, OESError

_NLM_STRENGTH = 0.8  # times sigma; scikit-image's own examples have as much
_TV_STRENGTH = 0.8


def nlm(noisy: Tensor, sigma: float | None = None) -> Tensor:
    """Non-local means (Buades et al. 2005) of scikit-image: patches of 5 x 5, searched 6 pixels around.

    Args:
        noisy: image in 0..1, float32 or float64, shape [1, C, H, W].
        sigma: standard deviation of its noise; None to estimate it, for which PyWavelets is needed.

    Returns:
        The denoised image, clipped to 0..1, as ``noisy`` in shape, dtype and device.

    Raises:
        InputError: no image, or sigma is no positive number, or None without PyWavelets.
    """
    from skimage.restoration import denoise_nl_means  # takes a while to import

    pixels, sigma = _prepared(noisy, sigma)
    found = denoise_nl_means(
        pixels,
        patch_size=5,
        patch_distance=6,
        h=_NLM_STRENGTH * sigma,
        sigma=sigma,
        fast_mode=False,
        channel_axis=-1,
    )
    return _restored(found, noisy)


def tv(noisy: Tensor, sigma: float | None = None) -> Tensor:
    """Total variation (Chambolle 2004) of scikit-image. Arguments, result and errors as of :func:`nlm`."""
    from skimage.restoration import denoise_tv_chambolle

    pixels, sigma = _prepared(noisy, sigma)
    found = denoise_tv_chambolle(
        pixels, weight=_TV_STRENGTH * sigma, eps=1e-4, max_num_iter=200, channel_axis=-1
    )
    return _restored(found, noisy)


def bm3d(noisy: Tensor, sigma: float | None = None) -> Tensor:
    """BM3D (Dabov et al. 2007) by its package, which ``pip install "oes_fast[bm3d]"`` installs.

    Colour images are grouped by their luminance. The package is free for non-commercial use alone.
    Arguments, result and errors as of :func:`nlm`.

    Raises:
        OESError: the package is not installed.
    """
    package = _bm3d_package()
    pixels, sigma = _prepared(noisy, sigma)
    if pixels.shape[-1] == 3:
        return _restored(package.bm3d_rgb(pixels, sigma), noisy)
    return _restored(package.bm3d(pixels[..., 0], sigma), noisy)


CLASSICAL: dict[str, Callable[[Tensor, float | None], Tensor]] = {"nlm": nlm, "tv": tv, "bm3d": bm3d}


def check_classical(name: str) -> None:
    """Raise :class:`OESError` if what a classical denoiser needs is not installed."""
    if name == "bm3d":
        _bm3d_package()


def _bm3d_package() -> Any:
    try:
        return importlib.import_module("bm3d")
    except ImportError as error:
        raise OESError(
            f'bm3d: expected the package bm3d, which pip install "oes_fast[bm3d]" installs, got {error}'
        ) from error


def _prepared(noisy: Tensor, sigma: float | None) -> tuple[np.ndarray, float]:
    """Pixels as float64 [H, W, C], and the noise level."""
    check_tensor("noisy", noisy, shape=(1, None, None, None), finite=True)
    if noisy.shape[1] not in (1, 3):
        raise InputError(f"noisy: expected 1 or 3 channels, got {noisy.shape[1]}")
    pixels = noisy.detach()[0].permute(1, 2, 0).to("cpu", torch.float64).contiguous().numpy()
    if sigma is None:
        from skimage.restoration import estimate_sigma

        try:
            sigma = float(np.mean(estimate_sigma(pixels, channel_axis=-1)))
        except ImportError as error:
            raise InputError(
                "sigma: expected the noise level, got None, and PyWavelets, which can estimate it, is not "
                "installed"
            ) from error
    return pixels, check_number("sigma", sigma, above=0.0)


def _restored(pixels: np.ndarray, noisy: Tensor) -> Tensor:
    height, width = noisy.shape[-2:]
    clipped = np.clip(pixels, 0, 1).reshape(height, width, -1)  # a single channel may have been left out
    return torch.from_numpy(np.ascontiguousarray(clipped.transpose(2, 0, 1)))[None].to(noisy)
