"""What is measured of a cell: PSNR and SSIM of its images, and its curves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast.io.image import psnr
from oes_fast.pipelines.train import TrainResult


def measures(
    noisy: Tensor,
    clean: Tensor,
    masked: Tensor | None,
    fit: TrainResult,
    average: Tensor | None,
    ssim_curve: list[tuple[int, float]],
) -> dict[str, Any]:
    """The figures of a training, as JSON values.

    Args:
        noisy: image [1, C, H, W] that was fitted.
        clean: what it is measured against.
        masked: image of the weights that training started from, under the mask; None without a mask.
        fit: the training.
        average: running average of its outputs, or the posterior mean.
        ssim_curve: step and SSIM of outputs.
    """
    images = {"masked": masked, "end": fit.output, "average": average}
    records, report = list(fit.history), fit.report()
    return {
        "psnr": {
            "noisy": psnr(noisy, clean),
            **{name: None if image is None else psnr(image, clean) for name, image in images.items()},
            **{name: report[name] for name in ("peak", "peak_step", "peak_average", "peak_average_step")},
        },
        "ssim": {
            "noisy": ssim(noisy, clean),
            **{name: None if image is None else ssim(image, clean) for name, image in images.items()},
            "peak": max(value for _, value in ssim_curve),
        },
        "steps": fit.steps,
        "collapsed": fit.collapsed,
        "diverged": fit.diverged,
        "parameters": sum(p.numel() for p in fit.net.parameters()),
        "curve": {
            "step": [r.step for r in records],
            "loss": [r.loss for r in records],
            "psnr": [r.psnr for r in records],
            "psnr_average": [r.psnr_average for r in records],
        },
    }


def ssim(image: Tensor, clean: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), with scikit-image's defaults.

    Windows are of 7 x 7 pixels, all alike, and the channels are taken apart.

    Args:
        image: in 0..1, shape [1, C, H, W], sides of 7 pixels at least.
        clean: likewise.
    """
    from skimage.metrics import structural_similarity  # takes a while to import

    first, second = (t.detach()[0].permute(1, 2, 0).to("cpu", torch.float64).numpy() for t in (image, clean))
    return float(structural_similarity(first, second, data_range=1.0, channel_axis=-1))
