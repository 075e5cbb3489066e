"""The encoder-decoder of deep image prior (Ulyanov et al., CVPR 2018) in the form that OES publishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import nn

from oes_fast._checks import check_choice, check_integer
from oes_fast.errors import InputError
from oes_fast.models.generator import Concat, Generator, append

PUBLISHED_CHANNELS = (16, 32, 64, 128, 128, 128)


def skip(
    num_input_channels: int = 32,
    num_output_channels: int = 3,
    *,
    num_channels_down: Sequence[int] = PUBLISHED_CHANNELS,
    num_channels_up: Sequence[int] | None = None,
    num_channels_skip: int | Sequence[int] = 0,
    filter_size_down: int | Sequence[int] = 5,
    filter_size_up: int | Sequence[int] = 3,
    filter_skip_size: int = 1,
    need_sigmoid: bool = True,
    need_bias: bool = True,
    pad: str = "reflection",
    upsample_mode: str | Sequence[str] = "nearest",
    downsample_mode: str | Sequence[str] = "avg",
    act_fun: str = "LeakyReLU",
    need1x1_up: bool = False,
    seed: int | None = None,
) -> Generator:
    """The generator G; the defaults are the published network of OES: 3,008,867 parameters.

    Names, nesting and parameter order are those of the published code, so its weights load with
    ``load_state_dict`` and its masks fit.

    Args:
        num_input_channels: channels of the input z.
        num_output_channels: channels of the image, 3 for RGB and 1 for grey.
        num_channels_down: channels of each scale going down; their number is the depth.
        num_channels_up: channels of each scale going up, as ``num_channels_down`` if None.
        num_channels_skip: channels of the skip connection of each scale; 0 for none.
        filter_size_down: odd kernel size going down, one or one for each scale.
        filter_size_up: odd kernel size going up, one or one for each scale.
        filter_skip_size: odd kernel size of the skip connections.
        need_sigmoid: end with a sigmoid.
        need_bias: convolutions have a bias.
        pad: "reflection" or "zero".
        upsample_mode: "nearest" or "bilinear", one or one for each scale.
        downsample_mode: "stride", "avg" or "max", one or one for each scale.
        act_fun: "LeakyReLU" (slope 0.2), "ELU", "SiLU" (alias "Swish") or "none".
        need1x1_up: a 1 x 1 convolution after every convolution going up.
        seed: of the initial weights (PyTorch's default initialisation). The global random state is left as
            it was. None draws from the global state, as PyTorch modules do.

    Returns:
        A :class:`Generator`: input [N, num_input_channels, H, W], output [N, num_output_channels, H, W], any
        H and W.

    Raises:
        InputError: an option is none of the above.
    """
    if not isinstance(num_channels_down, Sequence) or not num_channels_down:
        raise InputError(f"num_channels_down: expected one number or more, got {num_channels_down!r}")
    depth = len(num_channels_down)
    down = _channels("num_channels_down", num_channels_down, depth, minimum=1)
    up = _channels("num_channels_up", down if num_channels_up is None else num_channels_up, depth, minimum=1)
    skips = _channels("num_channels_skip", num_channels_skip, depth, minimum=0)
    kernel_down = _kernels("filter_size_down", filter_size_down, depth)
    kernel_up = _kernels("filter_size_up", filter_size_up, depth)
    (kernel_skip,) = _kernels("filter_skip_size", filter_skip_size, 1)
    upsample = _modes("upsample_mode", upsample_mode, depth, ("nearest", "bilinear"))
    downsample = _modes("downsample_mode", downsample_mode, depth, ("stride", "avg", "max"))
    check_choice("pad", pad, ("reflection", "zero"))
    check_choice("act_fun", act_fun, tuple(_ACTIVATIONS))
    check_integer("num_input_channels", num_input_channels, minimum=1)
    check_integer("num_output_channels", num_output_channels, minimum=1)

    # Batch statistics need more than one pixel at the coarsest scale, reflection by p more than p:
    # going up and across at the size before the down-sampling, going down (second convolution) after it.
    minimum = 2 * 2**depth
    if pad == "reflection":
        for i in range(depth):
            kernels = (kernel_up[i], kernel_skip if skips[i] else 1)
            reach = max(2 * (kernel_down[i] // 2 + 1), *(k // 2 + 1 for k in kernels))
            minimum = max(minimum, reach * 2**i)
    net = Generator(multiple=2**depth, minimum=minimum)

    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            # Not torch.manual_seed: it reseeds every GPU as well, which the fork does not restore.
            torch.default_generator.manual_seed(check_integer("seed", seed, minimum=0, below=2**64))
        sequence: nn.Sequential = net
        inputs = num_input_channels
        for i in range(depth):
            deepest = i == depth - 1
            below = down[i] if deepest else up[i + 1]
            inner = nn.Sequential()
            branch = nn.Sequential()
            _add_conv(branch, inputs, down[i], kernel_down[i], pad, need_bias, act_fun, downsample[i])
            _add_conv(branch, down[i], down[i], kernel_down[i], pad, need_bias, act_fun)
            if not deepest:
                append(branch, inner)
            append(branch, nn.Upsample(scale_factor=2, mode=upsample[i]))
            if skips[i]:
                across = nn.Sequential()
                _add_conv(across, inputs, skips[i], kernel_skip, pad, need_bias, act_fun)
                append(sequence, Concat(1, across, branch))
            else:
                append(sequence, branch)
            append(sequence, nn.BatchNorm2d(skips[i] + below))
            _add_conv(sequence, skips[i] + below, up[i], kernel_up[i], pad, need_bias, act_fun)
            if need1x1_up:
                _add_conv(sequence, up[i], up[i], 1, pad, need_bias, act_fun)
            inputs, sequence = down[i], inner
        append(net, _conv(up[0], num_output_channels, 1, pad, need_bias))
        if need_sigmoid:
            append(net, nn.Sigmoid())
    return net


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "LeakyReLU": lambda: nn.LeakyReLU(0.2, inplace=True),
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "Swish": nn.SiLU,
    "none": nn.Sequential,
}


def _add_conv(
    sequence: nn.Sequential,
    inputs: int,
    outputs: int,
    kernel: int,
    pad: str,
    bias: bool,
    act_fun: str,
    downsample: str | None = None,
) -> None:
    """Append convolution, batch norm and activation, with the down-sampling that ``downsample`` names."""
    append(sequence, _conv(inputs, outputs, kernel, pad, bias, downsample))
    append(sequence, nn.BatchNorm2d(outputs))
    append(sequence, _ACTIVATIONS[act_fun]())


def _conv(
    inputs: int, outputs: int, kernel: int, pad: str, bias: bool, downsample: str | None = None
) -> nn.Sequential:
    stride = 2 if downsample == "stride" else 1
    reach = kernel // 2
    layers: list[nn.Module] = []
    if pad == "reflection":
        layers.append(nn.ReflectionPad2d(reach))
        reach = 0
    layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding=reach, bias=bias))
    if downsample == "avg":
        layers.append(nn.AvgPool2d(2, 2))
    if downsample == "max":
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def _channels(name: str, value: int | Sequence[int], depth: int, minimum: int) -> list[int]:
    values = [value] * depth if isinstance(value, int) else value
    if not isinstance(values, Sequence) or len(values) != depth:
        raise InputError(f"{name}: expected one number, or {depth}, one for each scale, got {value!r}")
    return [check_integer(name, v, minimum=minimum) for v in values]


def _kernels(name: str, value: int | Sequence[int], depth: int) -> list[int]:
    values = _channels(name, value, depth, minimum=1)
    for v in values:
        if v % 2 == 0:
            raise InputError(f"{name}: expected an odd kernel size, got {v}")
    return values


def _modes(name: str, value: str | Sequence[str], depth: int, choices: tuple[str, ...]) -> list[str]:
    values = [value] * depth if isinstance(value, str) else value
    if not isinstance(values, Sequence) or len(values) != depth:
        raise InputError(f"{name}: expected one mode, or {depth}, one for each scale, got {value!r}")
    return [check_choice(name, v, choices) for v in values]
