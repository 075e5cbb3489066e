"""The encoder-decoder of deep image prior (Ulyanov et al., CVPR 2018) in the form that OES publishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from oes_fast._checks import check_choice, check_integer
from oes_fast.errors import InputError
from oes_fast.models.base import Concat, Generator, append
from oes_fast.models.layers import DOWNSAMPLE_MODES, PADS, Layers, check_activation, upsample_modes

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
    act_fun: str | Callable[[], nn.Module] = "LeakyReLU",
    need1x1_up: bool = False,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
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
        downsample_mode: "stride", "avg", "max", "lanczos2" or "lanczos3", one or one for each scale. A
            Lanczos filter is kept in a convolution of all channels to all channels, whose weights are
            parameters as all others are: see :class:`oes_fast.models.downsampler.Downsampler`.
        act_fun: "ReLU", "LeakyReLU" (slope 0.2), "ELU", "SiLU" (alias "Swish") or "none"; or a callable that
            gives a module, such as torch.nn.PReLU.
        need1x1_up: a 1 x 1 convolution after every convolution going up.
        seed: of the initial weights (PyTorch's default initialisation), in [0, 2^64). They are drawn in
            float32 on the CPU by a generator of their own and then converted: the same in every dtype, on
            every device and in every thread, and the global random state is neither read nor changed. None
            draws from the global state, as PyTorch modules do.
        dtype: of the weights, float32 or float64; None for torch.get_default_dtype().
        device: of the weights; None for torch.get_default_device().

    Returns:
        A :class:`Generator`: input [N, num_input_channels, H, W], output [N, num_output_channels, H, W], any
        H and W.

    Raises:
        InputError: an option is none of the above.

    Example:
        >>> net = oes.models.skip(seed=0)
        >>> sum(p.numel() for p in net.parameters())
        3008867
        >>> small = oes.models.skip(4, 1, num_channels_down=(8, 16), seed=0)  # grey images, two scales
    """
    return make_skip(
        2,
        num_input_channels,
        num_output_channels,
        num_channels_down=num_channels_down,
        num_channels_up=num_channels_up,
        num_channels_skip=num_channels_skip,
        filter_size_down=filter_size_down,
        filter_size_up=filter_size_up,
        filter_skip_size=filter_skip_size,
        need_sigmoid=need_sigmoid,
        need_bias=need_bias,
        pad=pad,
        upsample_mode=upsample_mode,
        downsample_mode=downsample_mode,
        act_fun=act_fun,
        need1x1_up=need1x1_up,
        seed=seed,
        dtype=dtype,
        device=device,
    )


def make_skip(
    dims: int,
    num_input_channels: int,
    num_output_channels: int,
    *,
    num_channels_down: Sequence[int],
    num_channels_up: Sequence[int] | None,
    num_channels_skip: int | Sequence[int],
    filter_size_down: int | Sequence[int],
    filter_size_up: int | Sequence[int],
    filter_skip_size: int,
    need_sigmoid: bool,
    need_bias: bool,
    pad: str,
    upsample_mode: str | Sequence[str],
    downsample_mode: str | Sequence[str],
    act_fun: str | Callable[[], nn.Module],
    need1x1_up: bool,
    seed: int | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Generator:
    """:func:`skip` of layers of so many dimensions."""
    if not isinstance(num_channels_down, Sequence) or not num_channels_down:
        raise InputError(f"num_channels_down: expected one number or more, got {num_channels_down!r}")
    depth = len(num_channels_down)
    down = _channels("num_channels_down", num_channels_down, depth, minimum=1)
    up = _channels("num_channels_up", down if num_channels_up is None else num_channels_up, depth, minimum=1)
    skips = _channels("num_channels_skip", num_channels_skip, depth, minimum=0)
    kernel_down = _kernels("filter_size_down", filter_size_down, depth)
    kernel_up = _kernels("filter_size_up", filter_size_up, depth)
    (kernel_skip,) = _kernels("filter_skip_size", filter_skip_size, 1)
    upsample = _modes("upsample_mode", upsample_mode, depth, upsample_modes(dims))
    downsample = _modes("downsample_mode", downsample_mode, depth, DOWNSAMPLE_MODES)
    check_choice("pad", pad, PADS)
    check_activation(act_fun)
    check_integer("num_input_channels", num_input_channels, minimum=1)
    check_integer("num_output_channels", num_output_channels, minimum=1)
    make = Layers.of(pad, need_bias, act_fun, seed=seed, dtype=dtype, device=device, dims=dims)

    # Batch statistics need more than one pixel at the coarsest scale, reflection by p more than p:
    # going up and across at the size before the down-sampling, going down (second convolution) after it.
    minimum = 2 * 2**depth
    if pad == "reflection":
        for i in range(depth):
            kernels = (kernel_up[i], kernel_skip if skips[i] else 1)
            reach = max(2 * (kernel_down[i] // 2 + 1), *(k // 2 + 1 for k in kernels))
            minimum = max(minimum, reach * 2**i)
    net = Generator(multiple=2**depth, minimum=minimum, dims=dims)

    sequence: nn.Sequential = net
    inputs = num_input_channels
    for i in range(depth):
        deepest = i == depth - 1
        below = down[i] if deepest else up[i + 1]
        inner = nn.Sequential()
        branch = nn.Sequential()
        make.add_conv(branch, inputs, down[i], kernel_down[i], downsample[i])
        make.add_conv(branch, down[i], down[i], kernel_down[i])
        if not deepest:
            append(branch, inner)
        append(branch, nn.Upsample(scale_factor=2, mode=upsample[i]))
        if skips[i]:
            across = nn.Sequential()
            make.add_conv(across, inputs, skips[i], kernel_skip)
            append(sequence, Concat(1, across, branch))
        else:
            append(sequence, branch)
        append(sequence, make.norm(skips[i] + below))
        make.add_conv(sequence, skips[i] + below, up[i], kernel_up[i])
        if need1x1_up:
            make.add_conv(sequence, up[i], up[i], 1)
        inputs, sequence = down[i], inner
    append(net, make.conv(up[0], num_output_channels, 1))
    if need_sigmoid:
        append(net, nn.Sigmoid())
    return net


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
