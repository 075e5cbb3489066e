"""Every generator of oes.models in tiny, with options that between them reach all kinds of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import oes_fast as oes
from oes_fast.models import ImageGenerator

SKIP = {"num_input_channels": 4, "num_channels_down": (4, 6), "filter_size_down": 3}
UNET = {"num_input_channels": 3, "feature_scale": 32}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "skip": ("skip", SKIP | {"num_channels_skip": 2, "need1x1_up": True}),
    "skip, lanczos": ("skip", SKIP | {"downsample_mode": ["lanczos2", "lanczos3"], "act_fun": "ReLU"}),
    "unet": ("unet", UNET | {"norm_layer": "BatchNorm2d"}),
    "unet, instance norm": (
        "unet",
        UNET | {"num_input_channels": 1, "concat_x": True, "more_layers": 1, "upsample_mode": "bilinear"},
    ),
    "resnet": ("resnet", {"num_input_channels": 3, "num_blocks": 2, "num_channels": 4}),
    "deep_decoder": ("deep_decoder", {"k": 2, "num_channels": 6}),
    "conv_decoder": ("conv_decoder", {"num_input_channels": 6, "in_size": 4, "num_layers": 3}),
    "conv_decoder, skips": (
        "conv_decoder",
        {"num_input_channels": 4, "in_size": [3, 5], "num_layers": 4, "skips": True, "need_lin_comb": True},
    ),
    "dcgan": ("dcgan", {"num_input_channels": 4, "ndf": 6}),
    "dcgan, up-sampling": ("dcgan", {"num_input_channels": 4, "ndf": 6, "num_ups": 5, "need_convT": False}),
    "skip_1d": ("skip_1d", SKIP | {"num_channels_skip": [2, 0], "downsample_mode": "lanczos2"}),
    "skip_3d": ("skip_3d", SKIP | {"num_input_channels": 2, "num_channels_skip": 1}),
}
SHAPES = {1: (2, 37), 2: (3, 21, 18), 3: (1, 9, 8, 10)}


def tiny(case: str, *, dtype: torch.dtype = torch.float64) -> tuple[ImageGenerator, Tensor, Tensor]:
    """(network, z, noisy image) of a case of :data:`TINY`."""
    name, options = TINY[case]
    shape = SHAPES[oes.models.MODELS[name].dims]
    net, z = oes.models.generator(name, shape, seed=0, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    return net, z, torch.rand(1, *shape, dtype=torch.float64, generator=generator).to(dtype)
