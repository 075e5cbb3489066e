"""The Deep Decoder: an untrained network with fewer weights than the image has numbers.

Heckel and Hand, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_flag, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import ImageGenerator, NumberedLayers, append
from oes_fast.models.layers import PADS, Layers, check_activation
from oes_fast.noise import noise_input


class DeepDecoder(NumberedLayers, ImageGenerator):
    """A sequence of layers that doubles the size of its input ``doublings`` times.

    Args:
        *layers: modules.
        channels: of the input.
        doublings: how often the size is doubled.
        size: (H, W) that the image is cropped to at the bottom and right; None leaves it as it is.
    """

    def __init__(
        self, *layers: nn.Module, channels: int, doublings: int, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(*layers)
        self.channels = channels
        self.doublings = doublings
        self.size = size

    def forward(self, z: Tensor) -> Tensor:
        """Image of the input.

        Args:
            z: input, shape [N, C, h, w].

        Returns:
            Tensor of shape [N, C', H, W] with (H, W) = :meth:`image_size` of (h, w).
        """
        image: Tensor = super().forward(z)
        if self.size is None or tuple(image.shape[-2:]) == self.size:
            return image
        return image[..., : self.size[0], : self.size[1]]

    def image_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W) of the image for an input of that (h, w)."""
        rows, columns = (side << self.doublings for side in size)
        return (rows, columns) if self.size is None else (min(rows, self.size[0]), min(columns, self.size[1]))

    def input_size(self, size: tuple[int, ...] | None = None) -> tuple[int, int]:
        """(h, w) of the input for an image of that (H, W).

        Args:
            size: of the image; None for the size that the network crops to.

        Raises:
            InputError: the network gives no image of that size.
        """
        if size is None:
            if self.size is None:
                raise InputError("size: expected (height, width), got None, and the network crops to no size")
            size = self.size
        height, width = checked_size(size)
        multiple = 1 << self.doublings
        if self.size is None and (height % multiple or width % multiple):
            raise InputError(
                f"size: expected multiples of {multiple}, got {height} x {width}; a network made with "
                f"size=({height}, {width}) crops to it"
            )
        if self.size is not None and (height, width) != self.size:
            raise InputError(
                f"size: expected {self.size[0]} x {self.size[1]}, which the network crops to, got "
                f"{height} x {width}"
            )
        return -(-height // multiple), -(-width // multiple)

    def extra_repr(self) -> str:
        """The size it crops to."""
        return "" if self.size is None else f"size={self.size}"


def deep_decoder(
    k: int = 5,
    num_output_channels: int = 3,
    *,
    num_channels: int | Sequence[int] = 128,
    size: Sequence[int] | None = None,
    filter_size: int | Sequence[int] = 1,
    upsample_mode: str = "bilinear",
    upsample_first: bool = True,
    act_fun: str | Callable[[], nn.Module] = "ReLU",
    bn_before_act: bool = False,
    bn_affine: bool = True,
    need_sigmoid: bool = True,
    pad: str = "reflection",
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> DeepDecoder:
    """The Deep Decoder of ``k`` layers; the defaults are those of the OES paper, of 100,224 parameters.

    Each of the k layers is a 1 x 1 convolution without bias, bilinear up-sampling by 2, ReLU and batch norm.
    A last layer without up-sampling, a 1 x 1 convolution to the image's channels and a sigmoid follow. The
    input is smaller than the image by 2^k on each side: :func:`deep_decoder_input` makes it. Names, nesting
    and order of the parameters are those of the published code: its weights load with ``load_state_dict``.

    The OES paper calls the number of layers k, Heckel and Hand the number of channels, here ``num_channels``.

    Args:
        k: number of layers that double the size, >= 1.
        num_output_channels: channels of the image, 3 for RGB and 1 for grey.
        num_channels: of each layer's input, one or k; the last layer has as many as the one before it.
        size: (H, W) of the image where it is no multiple of 2^k: the network crops to it at the bottom and
            right. None for no cropping.
        filter_size: odd kernel size, one or one for each of the k + 1 layers.
        upsample_mode: "bilinear" or "nearest".
        upsample_first: up-sample between convolution and activation, as the published code's default of this
            name does. Otherwise before the convolution, in all layers but the first.
        act_fun: "ReLU", "LeakyReLU" (slope 0.2), "ELU", "SiLU" (alias "Swish") or "none"; or a callable that
            gives a module.
        bn_before_act: batch norm before the activation, not after it.
        bn_affine: batch norm has a scale and a shift.
        need_sigmoid: end with a sigmoid.
        pad: "reflection" or "zero", where a filter is larger than 1.
        seed: of the initial weights, see :func:`oes_fast.models.skip`.
        dtype: of the weights, float32 or float64; None for torch.get_default_dtype().
        device: of the weights; None for torch.get_default_device().

    Returns:
        A :class:`DeepDecoder`: input [N, num_channels, h, w], output [N, num_output_channels, 2^k h, 2^k w],
        or [N, num_output_channels, H, W] with ``size``.

    Raises:
        InputError: an option is none of the above.

    Example:
        >>> net = oes.models.deep_decoder(5, seed=0)
        >>> z = oes.models.deep_decoder_input(net, (256, 256), seed=0)
        >>> z.shape, sum(p.numel() for p in net.parameters())
        (torch.Size([1, 128, 8, 8]), 100224)
    """
    check_integer("k", k, minimum=1)
    channels = _each("num_channels", num_channels, k)
    channels += [channels[-1], channels[-1]]
    filters = _each("filter_size", filter_size, k + 1)
    for kernel in filters:
        if kernel % 2 == 0:
            raise InputError(f"filter_size: expected an odd kernel size, got {kernel}")
    check_integer("num_output_channels", num_output_channels, minimum=1)
    check_choice("upsample_mode", upsample_mode, ("bilinear", "nearest"))
    check_activation(act_fun)
    check_choice("pad", pad, PADS)
    for name, flag in {
        "upsample_first": upsample_first,
        "bn_before_act": bn_before_act,
        "bn_affine": bn_affine,
        "need_sigmoid": need_sigmoid,
    }.items():
        check_flag(name, flag)
    cropped = None if size is None else checked_size(size)
    make = Layers.of(pad, False, act_fun, seed=seed, dtype=dtype, device=device)
    net = DeepDecoder(channels=channels[0], doublings=k, size=cropped)
    for i in range(k + 1):
        up = nn.Upsample(scale_factor=2, mode=upsample_mode)
        if not upsample_first and i > 0:
            append(net, up)
        append(net, make.conv(channels[i], channels[i + 1], filters[i]))
        if upsample_first and i < k:
            append(net, up)
        if bn_before_act:
            append(net, make.norm(channels[i + 1], affine=bn_affine))
        append(net, make.activation())
        if not bn_before_act:
            append(net, make.norm(channels[i + 1], affine=bn_affine))
    append(net, make.conv(channels[-1], num_output_channels, 1))
    if need_sigmoid:
        append(net, nn.Sigmoid())
    return net


def deep_decoder_input(net: DeepDecoder, size: Sequence[int] | None = None, *, seed: int = 0) -> Tensor:
    """The input z of a Deep Decoder, drawn from U(0, 0.1) as by :func:`oes_fast.noise_input`.

    Args:
        net: the network.
        size: (H, W) of the image; None for the size that the network crops to.
        seed: of the input, in [0, 2^64).

    Returns:
        Tensor of shape [1, channels, ceil(H / 2^k), ceil(W / 2^k)], dtype and device of the network.

    Raises:
        InputError: another network, or the network gives no image of that size.

    Example:
        >>> net = oes.models.deep_decoder(3, num_channels=16, size=(50, 36), seed=0)
        >>> z = oes.models.deep_decoder_input(net, seed=0)
        >>> z.shape, net(z).shape
        (torch.Size([1, 16, 7, 5]), torch.Size([1, 3, 50, 36]))
    """
    if not isinstance(net, DeepDecoder):
        raise InputError(f"net: expected an oes_fast.models.DeepDecoder, got {type(net).__name__}")
    weight = next(net.parameters())
    inner = net.input_size(None if size is None else checked_size(size))
    return noise_input(net.channels, inner, seed=seed, dtype=weight.dtype, device=weight.device)


def checked_size(size: object, name: str = "size") -> tuple[int, int]:
    """``size`` as (height, width), both positive."""
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        raise InputError(f"{name}: expected (height, width), got {size!r}")
    height, width = (check_integer(name, side, minimum=1) for side in size)
    return height, width


def _each(name: str, value: int | Sequence[int], count: int) -> list[int]:
    values = value if isinstance(value, Sequence) else [value] * count
    if isinstance(values, str) or len(values) != count:
        raise InputError(f"{name}: expected one number, or {count}, one for each layer, got {value!r}")
    return [check_integer(name, v, minimum=1) for v in values]
