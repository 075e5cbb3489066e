"""The layers that the generators are built of, with initial weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from oes_fast._checks import FLOAT_DTYPES, check_choice, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import append
from oes_fast.models.downsampler import KERNELS, Downsampler
from oes_fast.models.drawn import drawn_conv

PADS = ("reflection", "zero")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2, inplace=True),
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "Swish": nn.SiLU,
    "none": nn.Sequential,
}
DOWNSAMPLE_MODES = ("stride", "avg", "max", *KERNELS)
NORMS = ("BatchNorm2d", "InstanceNorm2d", "none")
_UPSAMPLE_MODES = {1: ("nearest", "linear"), 2: ("nearest", "bilinear"), 3: ("nearest", "trilinear")}


def upsample_modes(dims: int) -> tuple[str, ...]:
    """Modes of torch.nn.Upsample that are there in so many dimensions."""
    return _UPSAMPLE_MODES[dims]


def check_activation(act_fun: str | Callable[[], nn.Module]) -> str | Callable[[], nn.Module]:
    """``act_fun`` if it is a name of :data:`ACTIVATIONS` or a callable that gives a module.

    Raises:
        InputError: neither.
    """
    if not isinstance(act_fun, str) and callable(act_fun):
        made = act_fun()
        if not isinstance(made, nn.Module):
            raise InputError(
                f"act_fun: expected a callable that gives a module, it gave {type(made).__name__}"
            )
        return act_fun
    return check_choice("act_fun", act_fun, tuple(ACTIVATIONS))


@dataclass(frozen=True)
class Layers:
    """Makes the layers of a network; the order in which they are asked for is that of the random numbers."""

    pad: str
    bias: bool
    act_fun: str | Callable[[], nn.Module]
    generator: torch.Generator | None
    dtype: torch.dtype
    device: torch.device
    dims: int = 2

    @classmethod
    def of(
        cls,
        pad: str,
        bias: bool,
        act_fun: str | Callable[[], nn.Module],
        *,
        seed: int | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        dims: int = 2,
    ) -> Layers:
        """From the arguments of a network.

        Args:
            pad: "reflection" or "zero".
            bias: convolutions have a bias.
            act_fun: one of :data:`ACTIVATIONS`, or a callable that gives a module.
            seed: of the weights, None for the global random state.
            dtype: of the weights; None for torch.get_default_dtype().
            device: of the weights; None for torch.get_default_device().
            dims: dimensions of the image.

        Raises:
            InputError: another dtype than float32 and float64, or a seed out of range.
        """
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise InputError(f"dtype: expected float32 or float64, got {dtype}")
        return cls(
            pad,
            bias,
            act_fun,
            None if seed is None else _generator(seed),
            torch.get_default_dtype() if dtype is None else dtype,
            torch.get_default_device() if device is None else torch.device(device),
            dims,
        )

    def add_conv(
        self, sequence: nn.Sequential, inputs: int, outputs: int, kernel: int, downsample: str | None = None
    ) -> None:
        """Append convolution, batch norm and activation, with the down-sampling ``downsample`` names."""
        append(sequence, self.conv(inputs, outputs, kernel, downsample))
        append(sequence, self.norm(outputs))
        append(sequence, self.activation())

    def conv(self, inputs: int, outputs: int, kernel: int, downsample: str | None = None) -> nn.Sequential:
        """Padding and convolution, with the down-sampling that ``downsample`` names.

        Args:
            inputs: channels of the input.
            outputs: channels of the output.
            kernel: its size, odd.
            downsample: one of :data:`DOWNSAMPLE_MODES`, None for none.
        """
        reach = kernel // 2
        layers: list[nn.Module] = []
        if self.pad == "reflection":
            layers.append(self._of_dims("ReflectionPad")(reach))
            reach = 0
        stride = 2 if downsample == "stride" else 1
        layers.append(self.plain_conv(inputs, outputs, kernel, stride=stride, padding=reach))
        if downsample == "avg":
            layers.append(self._of_dims("AvgPool")(2, 2))
        elif downsample == "max":
            layers.append(self._of_dims("MaxPool")(2, 2))
        elif downsample in KERNELS:
            # Drawn before it is written over, as PyTorch does: the weights behind it are those of the seed.
            drawn = self.plain_conv(outputs, outputs, 2 * KERNELS[downsample] * 2, stride=2, bias=True)
            layers.append(Downsampler(drawn, KERNELS[downsample]))
        return nn.Sequential(*layers)

    def plain_conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        transposed: bool = False,
        stride: int = 1,
        padding: int = 0,
        bias: bool | None = None,
    ) -> Any:
        """A convolution, or a transposed one, of the network's dimensions."""
        return drawn_conv(
            self._of_dims("ConvTranspose" if transposed else "Conv"),
            inputs,
            outputs,
            kernel,
            generator=self.generator,
            dtype=self.dtype,
            device=self.device,
            stride=stride,
            padding=padding,
            bias=self.bias if bias is None else bias,
        )

    def norm(self, channels: int, *, affine: bool = True) -> nn.Module:
        """Batch norm, with a scale and a shift of its own if ``affine``."""
        norm: nn.Module = self._of_dims("BatchNorm")(
            channels, affine=affine, dtype=self.dtype, device=self.device
        )
        return norm

    def activation(self) -> nn.Module:
        """The activation."""
        made = (ACTIVATIONS[self.act_fun] if isinstance(self.act_fun, str) else self.act_fun)()
        return made.to(self.device, self.dtype)

    def other_norm(
        self, norm_layer: str | Callable[..., nn.Module] | None, channels: int, **options: Any
    ) -> list[nn.Module]:
        """The norm that ``norm_layer`` names or makes, an empty list for none.

        Args:
            norm_layer: one of :data:`NORMS`, a callable as torch.nn.BatchNorm2d is, or None.
            channels: of its input.
            **options: for the callable.
        """
        if norm_layer is None or norm_layer == "none":
            return []
        make = getattr(nn, norm_layer) if isinstance(norm_layer, str) else norm_layer
        return [make(channels, **options).to(self.device, self.dtype)]

    def _of_dims(self, name: str) -> Any:
        return getattr(nn, f"{name}{self.dims}d")


def check_norm(norm_layer: str | Callable[..., nn.Module] | None) -> None:
    """Raise :class:`InputError` unless it is one of :data:`NORMS`, a callable, or None."""
    if norm_layer is None or (not isinstance(norm_layer, str) and callable(norm_layer)):
        return
    check_choice("norm_layer", norm_layer, NORMS)


def _generator(seed: int) -> torch.Generator:
    # Not seeded_generator, which keeps streams apart: these are the words of torch.manual_seed(seed), so that
    # a seed gives the network that PyTorch gives under it.
    return torch.Generator("cpu").manual_seed(check_integer("seed", seed, minimum=0, below=2**64))
