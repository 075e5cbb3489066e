"""ConvDecoder: convolutions and up-sampling, for accelerated MRI (Darestani and Heckel, IEEE TCI 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_flag, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import ImageGenerator, append
from oes_fast.models.deep_decoder import checked_size
from oes_fast.models.layers import Layers, check_activation


class ConvDecoder(ImageGenerator):
    """A ConvDecoder, made by :func:`conv_decoder`; its modules have the published names.

    Args:
        net1: the layers that up-sample.
        net2: those at the image's size.
        size: (H, W) of the image.
        in_size: (h, w) of the input that it is made for; it takes others too.
        mode: of up-sampling.
        intermediate: numbers of the layers of ``net1`` whose outputs go to ``net2`` as well, up-sampled.
    """

    def __init__(
        self,
        net1: nn.Sequential,
        net2: nn.Sequential,
        *,
        size: tuple[int, int],
        in_size: tuple[int, int],
        mode: str,
        intermediate: Sequence[int],
    ) -> None:
        super().__init__()
        self.net1 = net1
        self.net2 = net2
        self.size = size
        self.in_size = in_size
        self.mode = mode
        self.intermediate = tuple(intermediate)

    def forward(self, z: Tensor) -> Tensor:
        """Image of the input.

        Args:
            z: input, shape [N, C, h, w].

        Returns:
            Tensor of shape [N, C', H, W].
        """
        x, across = z, []
        for number, layer in enumerate(self.net1, start=1):
            x = layer(x)
            if number in self.intermediate:
                across.append(nn.functional.interpolate(x, size=_inner(self.size), mode=self.mode))
        image: Tensor = self.net2(torch.cat([*across, x], 1) if across else x)
        if tuple(image.shape[-2:]) == self.size:
            return image
        return image[..., : self.size[0], : self.size[1]]

    def image_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W) of the image, for inputs of any size."""
        return self.size

    def input_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(h, w) of the input."""
        return self.in_size

    def extra_repr(self) -> str:
        """What the modules do not show."""
        shown = f", intermediate={self.intermediate}" if self.intermediate else ""
        return f"size={self.size}{shown}"


def conv_decoder(
    num_input_channels: int = 64,
    num_output_channels: int = 3,
    *,
    size: Sequence[int] = (256, 256),
    in_size: int | Sequence[int] = 16,
    num_layers: int = 6,
    need_sigmoid: bool = True,
    upsample_mode: str = "nearest",
    act_fun: str | Callable[[], nn.Module] = "ReLU",
    bn_affine: bool = True,
    skips: bool = False,
    intermeds: Sequence[bool] | None = None,
    nonlin_scales: bool = False,
    need_bias: bool = False,
    need_lin_comb: bool = False,
    need_last: bool = True,
    kernel_size: int = 3,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ConvDecoder:
    """The ConvDecoder of Darestani and Heckel 2021 (include/decoder_conv.py of their code).

    ``num_layers`` - 1 times up-sampling, a convolution, ReLU and batch norm, at sizes that grow by one factor
    from ``in_size`` to ``size``; then such a convolution at the image's size (``need_last``) and a 1 x 1
    convolution to the image. Names and order of the parameters are the published ones, so that its weights
    load with ``load_state_dict``. Options are as the authors set them for their images, but for the sigmoid,
    for images in [0, 1], and the published function's sizes: 7 layers of 256 channels from 8 x 4 are theirs
    for knees.

    Args:
        num_input_channels: channels of the input z and of every layer (published as num_channels).
        num_output_channels: channels of the image; two for each coil of complex ones.
        size: (H, W) of the image (published as out_size).
        in_size: (h, w) of the input, or one number for both; no more than ``size`` is taken.
        num_layers: number of layers, >= 2.
        need_sigmoid: end with a sigmoid.
        upsample_mode: "nearest" or "bilinear".
        act_fun: "ReLU", "LeakyReLU" (slope 0.2), "ELU", "SiLU" (alias "Swish") or "none"; or a callable that
            gives a module.
        bn_affine: batch norm has a scale and a shift.
        skips: outputs of the layers go to the last ones as well, up-sampled.
        intermeds: which of the ``num_layers`` - 2 before the last, with ``skips``; None for all.
        nonlin_scales: sizes grow by one step instead of one factor.
        need_bias: convolutions have a bias (published as bias).
        need_lin_comb: another batch norm, a 1 x 1 convolution and an activation in each layer.
        need_last: the convolution at the image's size.
        kernel_size: odd.
        seed: of the initial weights, see :func:`oes_fast.models.skip`.
        dtype: of the weights, float32 or float64; None for torch.get_default_dtype().
        device: of the weights; None for torch.get_default_device().

    Returns:
        A :class:`ConvDecoder`: input [N, num_input_channels, h, w], output [N, num_output_channels, H, W].

    Raises:
        InputError: an option is none of the above.

    Example:
        >>> net = oes.models.conv_decoder(16, 3, size=(50, 64), in_size=(4, 6), num_layers=4, seed=0)
        >>> net(oes.noise_input(16, (4, 6), seed=0)).shape
        torch.Size([1, 3, 50, 64])
    """
    channels = check_integer("num_input_channels", num_input_channels, minimum=1)
    check_integer("num_output_channels", num_output_channels, minimum=1)
    check_integer("num_layers", num_layers, minimum=2)
    if check_integer("kernel_size", kernel_size, minimum=1) % 2 == 0:
        raise InputError(f"kernel_size: expected an odd kernel size, got {kernel_size}")
    flags = {
        "need_sigmoid": need_sigmoid,
        "bn_affine": bn_affine,
        "skips": skips,
        "nonlin_scales": nonlin_scales,
        "need_bias": need_bias,
        "need_lin_comb": need_lin_comb,
        "need_last": need_last,
    }
    for name, flag in flags.items():
        check_flag(name, flag)
    check_choice("upsample_mode", upsample_mode, ("nearest", "bilinear"))
    check_activation(act_fun)
    kept = _intermediate(intermeds, num_layers, skips)
    whole = checked_size(size)
    wanted = checked_size([in_size, in_size] if isinstance(in_size, int) else in_size, "in_size")
    start = min(wanted[0], whole[0]), min(wanted[1], whole[1])
    sides = zip(start, _inner(whole), strict=True)
    sizes = list(zip(*(_sizes(a, b, num_layers - 1, nonlin_scales) for a, b in sides), strict=True))
    make = Layers.of("zero", need_bias, act_fun, seed=seed, dtype=dtype, device=device)

    def conv(inputs: int, kernel: int) -> nn.Module:
        made: nn.Module = make.plain_conv(inputs, channels, kernel, padding=kernel // 2)
        return made

    net1, ends = nn.Sequential(), []
    for inner in sizes:
        append(net1, nn.Upsample(size=inner, mode=upsample_mode))
        append(net1, conv(channels, kernel_size))
        append(net1, make.activation())
        if need_lin_comb:
            append(net1, make.norm(channels, affine=bn_affine))
            append(net1, conv(channels, 1))
            append(net1, make.activation())
        append(net1, make.norm(channels, affine=bn_affine))
        ends.append(len(net1))
    intermediate = [end for end, wanted in zip(ends, kept, strict=False) if wanted]
    net2, inputs = nn.Sequential(), channels * (len(intermediate) + 1)
    if need_last:
        append(net2, conv(inputs, kernel_size))
        append(net2, make.activation())
        append(net2, make.norm(channels, affine=bn_affine))
        inputs = channels
    append(net2, make.plain_conv(inputs, num_output_channels, 1))
    if need_sigmoid:
        append(net2, nn.Sigmoid())
    return ConvDecoder(net1, net2, size=whole, in_size=start, mode=upsample_mode, intermediate=intermediate)


def _intermediate(intermeds: Sequence[bool] | None, num_layers: int, skips: bool) -> list[bool]:
    """Which of the layers before the last go to the end as well."""
    count = num_layers - 2
    if not skips:
        if intermeds is not None:
            raise InputError(f"intermeds: expected it with skips alone, got {intermeds!r} without")
        return [False] * count
    if intermeds is None:
        return [True] * count
    if isinstance(intermeds, str) or not isinstance(intermeds, Sequence) or len(intermeds) != count:
        raise InputError(
            f"intermeds: expected {count} of True and False, one for each layer, got {intermeds!r}"
        )
    return [check_flag("intermeds", flag) for flag in intermeds]


def _inner(size: tuple[int, int]) -> tuple[int, int]:
    """The size inside: batch norm takes no single pixel."""
    return (2, size[1]) if size == (1, 1) else size


def _sizes(start: int, end: int, count: int, linear: bool) -> list[int]:
    """The ``count`` sizes from behind ``start`` to ``end``, rounded as the published code rounds."""
    scale = (end / start) ** (1.0 / count)
    if linear:
        steps = np.linspace(scale * start, end, count)
        return [int(size) for size in np.ceil(steps)]
    return [math.ceil(scale**n * start) for n in range(1, count)] + [end]
