"""The residual network of the deep-image-prior code (Ulyanov et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_flag, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import AnySize
from oes_fast.models.layers import PADS, Layers, check_activation, check_norm


class ResidualSequential(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` and what the layers make of it, of the same shape."""
        y: Tensor = super().forward(x)
        return y + x


class ResNet(AnySize):
    """A residual network, made by :func:`resnet`.

    Args:
        model: its layers, under the published name.
    """

    minimum = 2  # statistics need more than one pixel, mirroring too

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        """Image of the input's height and width.

        Args:
            z: input, shape [N, C, H, W].

        Returns:
            Tensor of shape [N, C', H, W].
        """
        return self.at_inner_size(self.model, z)


def resnet(
    num_input_channels: int = 32,
    num_output_channels: int = 3,
    *,
    num_blocks: int = 10,
    num_channels: int = 16,
    need_residual: bool = True,
    act_fun: str | Callable[[], nn.Module] = "LeakyReLU",
    need_sigmoid: bool = True,
    norm_layer: str | Callable[..., nn.Module] = "BatchNorm2d",
    pad: str = "reflection",
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ResNet:
    """The residual network of the deep-image-prior code (models/resnet.py).

    A convolution, ``num_blocks`` blocks of two convolutions and norms at the image's size, a convolution and
    a norm, and a convolution to the image. Names and order of the parameters are the published ones, so that
    its weights load with ``load_state_dict``. ``need_sigmoid`` is heeded, which the published code does not;
    the numbers of blocks and channels are those that code names for it.

    Args:
        num_input_channels: channels of the input z.
        num_output_channels: channels of the image, 3 for RGB and 1 for grey.
        num_blocks: number of blocks, >= 0.
        num_channels: channels inside.
        need_residual: the input of a block is added to its output.
        act_fun: "ReLU", "LeakyReLU" (slope 0.2), "ELU", "SiLU" (alias "Swish") or "none"; or a callable that
            gives a module.
        need_sigmoid: end with a sigmoid.
        norm_layer: "BatchNorm2d" or "InstanceNorm2d", with scale and shift; or a callable that takes the
            channels and ``affine=True``, as those classes are.
        pad: "reflection" or "zero", of the first and the last convolution; the others pad with zeros.
        seed: of the initial weights, see :func:`oes_fast.models.skip`.
        dtype: of the weights, float32 or float64; None for torch.get_default_dtype().
        device: of the weights; None for torch.get_default_device().

    Returns:
        A :class:`ResNet`: input [N, num_input_channels, H, W], output [N, num_output_channels, H, W], any H
        and W.

    Raises:
        InputError: an option is none of the above.

    Example:
        >>> net = oes.models.resnet(4, 3, num_blocks=2, num_channels=8, seed=0)
        >>> net(oes.noise_input(4, (30, 40), seed=0)).shape
        torch.Size([1, 3, 30, 40])
    """
    check_integer("num_input_channels", num_input_channels, minimum=1)
    check_integer("num_output_channels", num_output_channels, minimum=1)
    check_integer("num_blocks", num_blocks, minimum=0)
    check_integer("num_channels", num_channels, minimum=1)
    check_flag("need_residual", need_residual)
    check_flag("need_sigmoid", need_sigmoid)
    check_activation(act_fun)
    check_choice("pad", pad, PADS)
    check_norm(norm_layer)
    if norm_layer in ("none", None):
        raise InputError("norm_layer: expected BatchNorm2d, InstanceNorm2d or a callable, got none")
    make = Layers.of(pad, True, act_fun, seed=seed, dtype=dtype, device=device)
    layers: list[nn.Module] = [make.conv(num_input_channels, num_channels, 3), make.activation()]
    kind = ResidualSequential if need_residual else nn.Sequential
    for _ in range(num_blocks):
        first, between = _conv_norm(make, num_channels, norm_layer), make.activation()
        layers.append(kind(*first, between, *_conv_norm(make, num_channels, norm_layer)))
    layers += _conv_norm(make, num_channels, norm_layer, bias=True)
    layers.append(make.conv(num_channels, num_output_channels, 3))
    if need_sigmoid:
        layers.append(nn.Sigmoid())
    return ResNet(nn.Sequential(*layers))


def _conv_norm(
    make: Layers, channels: int, norm_layer: str | Callable[..., nn.Module], *, bias: bool = False
) -> list[nn.Module]:
    conv = make.plain_conv(channels, channels, 3, padding=1, bias=bias)
    return [conv, *make.other_norm(norm_layer, channels, affine=True)]
