"""Checks that the search and the training share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oes_fast._checks import check_tensor
from oes_fast.errors import CollapsedRunWarning, InputError, warn_caller
from oes_fast.flat import check_network
from oes_fast.models import ImageGenerator
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.divergence import check_finite_network

FLAT = 0.1  # an output whose spread over the image is below this share of the target's has collapsed


def check_input(net: nn.Module, z: Tensor, *, batch: bool = False) -> None:
    """Raise :class:`InputError` unless ``net`` has finite weights and ``z`` is one input [1, C, ...].

    Args:
        net: generator.
        z: its input.
        batch: any number of inputs will do, [N, C, ...].
    """
    check_network(net)
    check_finite_network(net)
    check_tensor("z", z, like=next(net.parameters()).detach(), finite=True)
    if z.ndim < 2 or z.numel() == 0 or not (batch or z.shape[0] == 1):
        wanted = "inputs, shape (N, C, ...)" if batch else "one input, shape (1, C, ...)"
        raise InputError(f"z: expected {wanted}, got {tuple(z.shape)}")


def check_run_inputs(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    clean: Tensor | CleanView | None = None,
    *,
    forward: object = None,
    batch: bool = False,
) -> None:
    """Raise :class:`InputError` unless the network, its input and the image fit together.

    Args:
        net: generator.
        z: input, shape [1, C, ...]; of our own generators [1, C, H, W], or of other dimensions as they have.
        noisy: image, shape [1, C', H', W'], finite; of our own generators, of the size that they give for z.
            With a forward operator a measurement of any shape, real or complex, of the network's precision.
        clean: None or an image of the shape of ``noisy``, with a forward operator of the network's image;
            or what is held against a view of that.
        forward: the operator, or None.
        batch: there may be N inputs and as many images, [N, C, ...] and [N, C', H', W'].
    """
    check_input(net, z, batch=batch)
    weights = next(net.parameters()).detach()
    size: tuple[int | None, ...] = (None, None)
    if isinstance(net, ImageGenerator):
        check_tensor("z", z, ndim=2 + net.dims)
        channels = net.input_channels()
        if channels is not None and z.shape[1] != channels:
            raise InputError(f"z: expected {channels} channels as the network takes, got {z.shape[1]}")
        size = net.image_size(tuple(z.shape[2:]))  # other networks give what they like
    if isinstance(clean, CleanView):  # its shape is checked when there is an image
        check_tensor("clean", clean.image, device=weights.device, finite=True)
        clean = None
    if forward is None:
        check_tensor("noisy", noisy, ndim=2 + len(size))
        if batch and z.shape[0] != noisy.shape[0]:
            raise InputError(f"z: expected an input for each of {noisy.shape[0]} images, got {z.shape[0]}")
        check_tensor("noisy", noisy, shape=(z.shape[0], None, *size), like=weights, finite=True)
        if clean is not None:
            check_tensor("clean", clean, shape=noisy.shape, like=weights, finite=True)
        return
    dtypes = (weights.dtype, weights.dtype.to_complex())
    check_tensor("noisy", noisy, dtypes=dtypes, device=weights.device, finite=True)
    if noisy.numel() == 0:
        raise InputError(f"noisy: expected a number at least, got shape {tuple(noisy.shape)}")
    if clean is not None:  # that of other networks' images is checked when there is one
        shape = None if size[0] is None else (z.shape[0], None, *size)
        check_tensor("clean", clean, shape=shape, like=weights, finite=True)


def ordinary(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy that autograd takes where it was made under torch.inference_mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def detect_collapse(spreads: Tensor, expecteds: Tensor, phase: str, *, forward: bool = False) -> bool:
    """Whether an output is flat, beside its target; warns with :class:`CollapsedRunWarning` if so.

    Args:
        spreads: of what is measured of each output [N], see
            :meth:`oes_fast.pipelines.objective.Objective.spreads`.
        expecteds: of the targets [N].
        phase: "search" or "train".
        forward: they are spreads of measurements.
    """
    flat = torch.nonzero(spreads < FLAT * expecteds).flatten().tolist()
    collapsed = len(flat) > 0
    if collapsed:
        spread, expected = spreads[flat[0]], expecteds[flat[0]]
        of, what = (" of its measurement", "one") if forward else ("", "image")
        which = "" if len(spreads) == 1 else f" {', '.join(map(str, flat))} of {len(spreads)}"
        warn_caller(
            f"{phase}: the output{which} is flat (standard deviation {float(spread):.4f}{of}, the noisy "
            f"{what} has {float(expected):.4f}); the sparse network has collapsed or was given too few "
            "steps. With fewer than about 4 % of the weights this is to be expected on single images.",
            CollapsedRunWarning,
        )
    return collapsed
