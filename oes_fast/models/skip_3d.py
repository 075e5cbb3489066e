"""The skip network over volumes: :func:`oes_fast.models.skip` with three-dimensional layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from oes_fast.models.base import Generator
from oes_fast.models.skip import make_skip

CHANNELS = (16, 32, 64, 128)


def skip_3d(
    num_input_channels: int = 32,
    num_output_channels: int = 1,
    *,
    num_channels_down: Sequence[int] = CHANNELS,
    num_channels_up: Sequence[int] | None = None,
    num_channels_skip: int | Sequence[int] = 0,
    filter_size_down: int | Sequence[int] = 3,
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
    """The network of :func:`oes_fast.models.skip` over torch.nn.Conv3d: 1,627,201 parameters by default.

    Names and nesting of the parameters are those of :func:`oes_fast.models.skip`; arguments are the same but
    for ``upsample_mode``, with fewer scales and smaller filters by default. Untrained networks of this kind
    restore volumes, of PET for instance (Gong et al. 2019). It runs on plain PyTorch operations, on every
    backend.

    Args:
        num_input_channels: channels of the input z.
        num_output_channels: channels of the volume.
        num_channels_down: channels of each scale going down; their number is the depth.
        num_channels_up: as in :func:`oes_fast.models.skip`, and so are the arguments below.
        num_channels_skip: see there.
        filter_size_down: see there.
        filter_size_up: see there.
        filter_skip_size: see there.
        need_sigmoid: end with a sigmoid: for volumes in [0, 1].
        need_bias: see there.
        pad: see there.
        upsample_mode: "nearest" or "trilinear", one or one for each scale.
        downsample_mode: see there.
        act_fun: see there.
        need1x1_up: see there.
        seed: see there.
        dtype: see there.
        device: see there.

    Returns:
        A :class:`Generator`: input [N, num_input_channels, D, H, W], output
        [N, num_output_channels, D, H, W], any D, H and W.

    Raises:
        InputError: an option is none of the above.

    Example:
        >>> net = oes.models.skip_3d(4, 1, num_channels_down=(4, 8), seed=0)
        >>> net(torch.rand(1, 4, 10, 12, 16)).shape
        torch.Size([1, 1, 10, 12, 16])
    """
    return make_skip(
        3,
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
