"""The DCGAN generator of the deep-image-prior code (Ulyanov et al., CVPR 2018; Radford et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_flag, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import ImageGenerator
from oes_fast.models.deep_decoder import checked_size
from oes_fast.models.layers import Layers, check_activation


class DCGAN(nn.Sequential, ImageGenerator):
    """A DCGAN generator, made by :func:`dcgan`: two pixels more on each side, then doubled again and again.

    Args:
        *layers: modules.
        doublings: how often the size is doubled.
        size: (H, W) that the image is cropped to at the bottom and right; None leaves it as it is.
    """

    def __init__(self, *layers: nn.Module, doublings: int, size: tuple[int, int] | None = None) -> None:
        super().__init__(*layers)
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
        whole = tuple(side + 2 << self.doublings for side in size)
        return whole if self.size is None else tuple(map(min, whole, self.size))

    def input_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The smallest (h, w) of an input whose image has (H, W) at least."""
        return tuple(max(1, -(-side // (1 << self.doublings)) - 2) for side in size)

    def extra_repr(self) -> str:
        """The size it crops to."""
        return "" if self.size is None else f"size={self.size}"


def dcgan(
    num_input_channels: int = 32,
    num_output_channels: int = 3,
    *,
    ndf: int = 32,
    num_ups: int = 4,
    need_sigmoid: bool = True,
    need_convT: bool = True,  # the published name
    upsample_mode: str = "nearest",
    act_fun: str | Callable[[], nn.Module] = "LeakyReLU",
    size: Sequence[int] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> DCGAN:
    """The DCGAN generator of the deep-image-prior code (models/dcgan.py).

    A transposed convolution of 3 x 3 without padding, batch norm and activation; ``num_ups`` - 3 times a
    transposed convolution of 4 x 4 and stride 2, batch norm and activation; and one such convolution to the
    image. An input of h x w becomes an image of 2^(num_ups - 2) (h + 2) pixels on a side. Names and order of
    the parameters are the published ones, so that its weights load with ``load_state_dict``.

    The activation of the published code is LeakyReLU(True), whose slope of 1 does nothing, as
    ``act_fun="none"``.

    Args:
        num_input_channels: channels of the input z (published as inp).
        num_output_channels: channels of the image; the published code has 3.
        ndf: channels inside.
        num_ups: two more than the doublings, >= 3.
        need_sigmoid: end with a sigmoid.
        need_convT: transposed convolutions; without, up-sampling and convolutions of 3 x 3.
        upsample_mode: "nearest" or "bilinear" of all up-samplings but the last, which is bilinear; no matter
            with ``need_convT``.
        act_fun: "ReLU", "LeakyReLU" (slope 0.2), "ELU", "SiLU" (alias "Swish") or "none"; or a callable that
            gives a module.
        size: (H, W) of the image: the network crops to it at the bottom and right. None for no cropping.
        seed: of the initial weights, see :func:`oes_fast.models.skip`.
        dtype: of the weights, float32 or float64; None for torch.get_default_dtype().
        device: of the weights; None for torch.get_default_device().

    Returns:
        A :class:`DCGAN`: input [N, num_input_channels, h, w], output [N, num_output_channels, H, W].

    Raises:
        InputError: an option is none of the above.

    Example:
        >>> net = oes.models.dcgan(8, 3, ndf=16, num_ups=5, size=(50, 64), seed=0)
        >>> net.input_size((50, 64)), net(oes.noise_input(8, (5, 6), seed=0)).shape
        ((5, 6), torch.Size([1, 3, 50, 64]))
    """
    check_integer("num_input_channels", num_input_channels, minimum=1)
    check_integer("num_output_channels", num_output_channels, minimum=1)
    check_integer("ndf", ndf, minimum=1)
    if check_integer("num_ups", num_ups) < 3:
        raise InputError(f"num_ups: expected 3 or more, two more than the doublings, got {num_ups}")
    check_flag("need_sigmoid", need_sigmoid)
    check_flag("need_convT", need_convT)
    check_choice("upsample_mode", upsample_mode, ("nearest", "bilinear"))
    check_activation(act_fun)
    make = Layers.of("zero", False, act_fun, seed=seed, dtype=dtype, device=device)

    def doubled(outputs: int, mode: str) -> list[nn.Module]:
        if need_convT:
            return [make.plain_conv(ndf, outputs, 4, transposed=True, stride=2, padding=1)]
        return [nn.Upsample(scale_factor=2, mode=mode), make.plain_conv(ndf, outputs, 3, padding=1)]

    first = make.plain_conv(num_input_channels, ndf, 3, transposed=True)
    layers: list[nn.Module] = [first, make.norm(ndf), make.activation()]
    for _ in range(num_ups - 3):
        layers += [*doubled(ndf, upsample_mode), make.norm(ndf), make.activation()]
    layers += doubled(num_output_channels, "bilinear")
    if need_sigmoid:
        layers.append(nn.Sigmoid())
    return DCGAN(
        *layers,
        doublings=num_ups - 2,
        size=None if size is None else checked_size(size),
    )
