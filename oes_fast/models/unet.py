"""The U-Net of the deep-image-prior code (Ulyanov et al., CVPR 2018; Ronneberger et al. 2015)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_flag, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import AnySize, center_crop
from oes_fast.models.layers import PADS, Layers, check_norm

_WIDTHS = (64, 128, 256, 512, 1024)  # channels of the scales, to be divided by feature_scale
_UPSAMPLE_MODES = ("deconv", "nearest", "bilinear")

Norm = str | Callable[..., nn.Module] | None


class UNet(AnySize):
    """A U-Net, made by :func:`unet`; its modules have the published names."""

    def __init__(
        self,
        make: Layers,
        num_input_channels: int,
        num_output_channels: int,
        *,
        widths: list[int],
        more_layers: int,
        concat_x: bool,
        upsample_mode: str,
        norm_layer: Norm,
        need_sigmoid: bool,
    ) -> None:
        super().__init__()
        depth = 4 + more_layers
        self.multiple = 2**depth
        self.minimum = 2 * self.multiple  # statistics need more than one pixel at the coarsest scale
        self.more_layers = more_layers
        self.concat_x = concat_x
        given = num_input_channels if concat_x else 0  # channels that the input itself makes up
        own = [width - given for width in widths]
        self.start = _Convs(make, num_input_channels, own[0], norm_layer)
        for i in range(1, 5):
            self.add_module(f"down{i}", _Down(make, widths[i - 1], own[i], norm_layer))
        if more_layers:
            # Listed once all are made: their random numbers come in this order.
            downs = [_Down(make, widths[4], own[4], norm_layer) for _ in range(more_layers)]
            ups = [_Up(make, widths[4], widths[4], upsample_mode) for _ in range(more_layers)]
            self.more_downs = nn.ModuleList(downs)
            self.more_ups = nn.ModuleList(ups)
        for i in range(4, 0, -1):
            self.add_module(f"up{i}", _Up(make, 2 * widths[i - 1], widths[i - 1], upsample_mode))
        final: nn.Module = make.conv(widths[0], num_output_channels, 1)
        self.final = nn.Sequential(final, nn.Sigmoid()) if need_sigmoid else final

    def extra_repr(self) -> str:
        """What the modules do not show."""
        return f"concat_x={self.concat_x}"

    def forward(self, z: Tensor) -> Tensor:
        """Image of the input's height and width.

        Args:
            z: input, shape [N, C, H, W].

        Returns:
            Tensor of shape [N, C', H, W].
        """
        return self.at_inner_size(self._run, z)

    def _run(self, z: Tensor) -> Tensor:
        small = z
        scales = [self._with_input(self.start(z), small)]
        downs = [getattr(self, f"down{i}") for i in range(1, 5)]
        ups = [getattr(self, f"up{i}") for i in range(1, 5)]
        if self.more_layers:
            downs += list(self.more_downs)
            ups += list(self.more_ups)
        for down in downs:
            if self.concat_x:
                small = nn.functional.avg_pool2d(small, 2, 2)
            scales.append(self._with_input(down(scales[-1]), small))
        x = scales.pop()
        for up, across in zip(reversed(ups), reversed(scales), strict=True):
            x = up(x, across)
        image: Tensor = self.final(x)
        return image

    def _with_input(self, x: Tensor, small: Tensor) -> Tensor:
        return torch.cat([x, small], 1) if self.concat_x else x


class _Convs(nn.Module):
    """Twice a convolution of 3 x 3, a norm and ReLU."""

    def __init__(self, make: Layers, inputs: int, outputs: int, norm_layer: Norm) -> None:
        super().__init__()
        self.conv1 = self._conv(make, inputs, outputs, norm_layer)
        self.conv2 = self._conv(make, outputs, outputs, norm_layer)

    @staticmethod
    def _conv(make: Layers, inputs: int, outputs: int, norm_layer: Norm) -> nn.Sequential:
        return nn.Sequential(
            make.conv(inputs, outputs, 3), *make.other_norm(norm_layer, outputs), make.activation()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return y


class _Down(nn.Module):
    """Max-pooling, then :class:`_Convs`."""

    def __init__(self, make: Layers, inputs: int, outputs: int, norm_layer: Norm) -> None:
        super().__init__()
        self.conv = _Convs(make, inputs, outputs, norm_layer)
        self.down = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.down(x))
        return y


class _Up(nn.Module):
    """Up-sampling, what comes across beside it, then :class:`_Convs` without norms."""

    def __init__(self, make: Layers, inputs: int, outputs: int, upsample_mode: str) -> None:
        super().__init__()
        if upsample_mode == "deconv":  # with a bias in any case
            self.up = make.plain_conv(inputs, outputs, 4, transposed=True, stride=2, padding=1, bias=True)
        else:
            self.up = nn.Sequential(
                nn.Upsample(scale_factor=2, mode=upsample_mode), make.conv(inputs, outputs, 3)
            )
        self.conv = _Convs(make, 2 * outputs, outputs, None)

    def forward(self, x: Tensor, across: Tensor) -> Tensor:
        up = self.up(x)
        y: Tensor = self.conv(torch.cat([up, center_crop(across, *up.shape[2:])], 1))
        return y


def unet(
    num_input_channels: int = 32,
    num_output_channels: int = 3,
    *,
    feature_scale: int = 4,
    more_layers: int = 0,
    concat_x: bool = False,
    upsample_mode: str = "deconv",
    pad: str = "zero",
    norm_layer: str | Callable[..., nn.Module] | None = "InstanceNorm2d",
    need_sigmoid: bool = True,
    need_bias: bool = True,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> UNet:
    """The U-Net of the deep-image-prior code (models/unet.py); its defaults but for the input's channels.

    Five scales of two 3 x 3 convolutions each, max-pooling between them, and on the way up transposed
    convolutions or up-sampling beside what comes across. Names and order of the parameters are the published
    ones, so that its weights load with ``load_state_dict``. What the published code does with two and more of
    ``more_layers``, where it fails, is done as its loop means it.

    Args:
        num_input_channels: channels of the input z.
        num_output_channels: channels of the image, 3 for RGB and 1 for grey.
        feature_scale: what the channels of the scales, 64 to 1024, are divided by: 1 to 64.
        more_layers: scales beyond the five.
        concat_x: the input, averaged to each scale's size, makes up the last of its channels.
        upsample_mode: "deconv" (a transposed convolution of 4 x 4), "nearest" or "bilinear".
        pad: "zero" or "reflection".
        norm_layer: "InstanceNorm2d", "BatchNorm2d" or "none" (or None), on the way down; or a callable that
            takes the channels, as those classes are.
        need_sigmoid: end with a sigmoid.
        need_bias: convolutions have a bias; transposed ones always have.
        seed: of the initial weights, see :func:`oes_fast.models.skip`.
        dtype: of the weights, float32 or float64; None for torch.get_default_dtype().
        device: of the weights; None for torch.get_default_device().

    Returns:
        A :class:`UNet`: input [N, num_input_channels, H, W], output [N, num_output_channels, H, W], any H and
        W.

    Raises:
        InputError: an option is none of the above, or ``concat_x`` leaves a scale no channels of its own.

    Example:
        >>> net = oes.models.unet(4, 3, feature_scale=16, norm_layer="BatchNorm2d", seed=0)
        >>> net(oes.noise_input(4, (48, 40), seed=0)).shape
        torch.Size([1, 3, 48, 40])
    """
    check_integer("num_input_channels", num_input_channels, minimum=1)
    check_integer("num_output_channels", num_output_channels, minimum=1)
    check_integer("feature_scale", feature_scale, minimum=1, below=_WIDTHS[0] + 1)
    check_integer("more_layers", more_layers, minimum=0)
    for name, flag in {"concat_x": concat_x, "need_sigmoid": need_sigmoid, "need_bias": need_bias}.items():
        check_flag(name, flag)
    check_choice("upsample_mode", upsample_mode, _UPSAMPLE_MODES)
    check_choice("pad", pad, PADS)
    check_norm(norm_layer)
    widths = [width // feature_scale for width in _WIDTHS]
    if concat_x and widths[0] <= num_input_channels:
        raise InputError(
            f"concat_x: expected fewer input channels than the {widths[0]} of the first scale, got "
            f"{num_input_channels}"
        )
    return UNet(
        Layers.of(pad, need_bias, "ReLU", seed=seed, dtype=dtype, device=device),
        num_input_channels,
        num_output_channels,
        widths=widths,
        more_layers=more_layers,
        concat_x=concat_x,
        upsample_mode=upsample_mode,
        norm_layer=norm_layer,
        need_sigmoid=need_sigmoid,
    )
