"""Checks that the search and the training share."""

from __future__ import annotations

from torch import Tensor, nn

from oes_fast._checks import check_tensor
from oes_fast.errors import CollapsedRunWarning, InputError, warn_caller
from oes_fast.flat import check_network
from oes_fast.models import DeepDecoder, Generator
from oes_fast.pipelines.divergence import check_finite_network

FLAT = 0.1  # an output whose spread over the image is below this share of the target's has collapsed


def check_input(net: nn.Module, z: Tensor) -> None:
    """Raise :class:`InputError` unless ``net`` has finite weights and ``z`` is one input [1, C, ...]."""
    check_network(net)
    check_finite_network(net)
    check_tensor("z", z, like=next(net.parameters()).detach(), finite=True)
    if z.ndim < 2 or z.shape[0] != 1 or z.numel() == 0:
        raise InputError(f"z: expected one input, shape (1, C, ...), got {tuple(z.shape)}")


def check_run_inputs(
    net: nn.Module, z: Tensor, noisy: Tensor, clean: Tensor | None = None, *, forward: object = None
) -> None:
    """Raise :class:`InputError` unless the network, its input and the image fit together.

    Args:
        net: generator.
        z: input, shape [1, C, ...]; of our own generators [1, C, H, W].
        noisy: image, shape [1, C', H', W'], finite; of our own generators, of the size that they give for z.
            With a forward operator a measurement of any shape, real or complex, of the network's precision.
        clean: None or an image of the shape of ``noisy``, with a forward operator of the network's image.
        forward: the operator, or None.
    """
    check_input(net, z)
    weights = next(net.parameters()).detach()
    size: tuple[int | None, ...] = (None, None)
    if isinstance(net, Generator | DeepDecoder):
        check_tensor("z", z, ndim=4)
        first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and z.shape[1] != first.in_channels:
            raise InputError(
                f"z: expected {first.in_channels} channels as the network takes, got {z.shape[1]}"
            )
        size = net.image_size((z.shape[-2], z.shape[-1]))  # other networks give what they like
    if forward is None:
        check_tensor("noisy", noisy, shape=(1, None, *size), like=weights, finite=True)
        if clean is not None:
            check_tensor("clean", clean, shape=noisy.shape, like=weights, finite=True)
        return
    dtypes = (weights.dtype, weights.dtype.to_complex())
    check_tensor("noisy", noisy, dtypes=dtypes, device=weights.device, finite=True)
    if noisy.numel() == 0:
        raise InputError(f"noisy: expected a number at least, got shape {tuple(noisy.shape)}")
    if clean is not None:  # that of other networks' images is checked when there is one
        check_tensor(
            "clean", clean, shape=None if size[0] is None else (1, None, *size), like=weights, finite=True
        )


def ordinary(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy that autograd takes where it was made under torch.inference_mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def detect_collapse(spread: Tensor, expected: Tensor, phase: str) -> bool:
    """Whether the output is flat, beside the target; warns with :class:`CollapsedRunWarning` if so.

    Args:
        spread: of what is measured of the output, see :meth:`oes_fast.pipelines.objective.Objective.spreads`.
        expected: of the target.
        phase: "search" or "train".
    """
    collapsed = bool(spread < FLAT * expected)
    if collapsed:
        warn_caller(
            f"{phase}: the output is flat (standard deviation {float(spread):.4f}, the noisy image has "
            f"{float(expected):.4f}); the sparse network has collapsed or was given too few steps. "
            "With fewer than about 4 % of the weights this is to be expected on single images.",
            CollapsedRunWarning,
        )
    return collapsed
