"""A network as a function of the weights that a mask keeps: what all figures are computed of."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from oes_fast._checks import check_choice, check_flag, check_integer, check_tensor, described
from oes_fast.analysis.layers import flat_mask
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, check_entry, entry_of
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, flatten
from oes_fast.mask import Mask
from oes_fast.pipelines.divergence import check_finite_network
from oes_fast.pipelines.functions import RewrittenFunction, make_function
from oes_fast.pipelines.inputs import check_run_inputs, ordinary
from oes_fast.reference.philox import PROBE, random_bits

# Those that can be differentiated twice; the kernels of the others cannot.
SECOND_ORDER = ("torch", "reference")


class KeptFunction(Protocol):
    """The image as a function of the kept weights, in training mode, at a fixed input."""

    def initial_weights(self) -> Tensor:
        """The weights of the network it was made from, shape [kept]."""

    def __call__(self, weights: Tensor, *, update_stats: bool) -> Tensor:
        """The image [1, C, H, W], differentiable in ``weights`` [kept]."""


class _Dense:
    """The network as it is, called with the kept weights in their places and zeros in the others."""

    def __init__(self, net: nn.Module, z: Tensor, mask: Tensor, entry: Entry | None) -> None:
        self._entry = entry
        self._net = copy_network(net).train()
        self._z = z
        self._places = torch.nonzero(mask).flatten().to(z.device)
        self._layout = FlatLayout.of(net)
        self._buffers = dict(self._net.named_buffers())

    def initial_weights(self) -> Tensor:
        return flatten(self._net)[self._places]

    def __call__(self, weights: Tensor, *, update_stats: bool) -> Tensor:
        dense = weights.new_zeros(self._layout.numel).index_copy(0, self._places, weights)
        values = self._layout.views(dense) | {n: b.clone() for n, b in self._buffers.items()}
        output = functional_call(self._net, values, (self._z,))
        image = entry_of(output, self._entry, of=type(self._net).__name__)
        if not isinstance(image, Tensor):
            raise InputError(f"net: expected a network that returns one tensor, got {described(image)}")
        return image if image.requires_grad or not weights.requires_grad else image + 0 * weights.sum()


def kept_function(
    net: nn.Module,
    mask: Mask | None,
    z: Tensor,
    noisy: Tensor | None,
    *,
    entry: Entry | None,
    backend: str,
    verify: bool,
) -> KeptFunction:
    """The image of ``net`` at ``z`` as a function of the weights that the mask keeps.

    Args:
        net: copied, and left alone.
        mask: which weights are kept, None for all.
        z: input [1, C, H, W].
        noisy: what the image is to be compared with, checked against the network; None for nothing.
        entry: which of several results of the network is the image.
        backend: "reference" for the network as it is, another for the rewritten one.
        verify: compare the rewritten network with ``net`` first.

    Raises:
        InputError: an argument does not fit, with its name; or a mask that keeps nothing.
        MaskMismatchError: the mask belongs to another network.
        BackendError: the backend cannot run here.
        TraceError: the network's code cannot be traced and the backend was named.
    """
    flat = flat_mask(net, mask)
    check_finite_network(net)
    check_flag("verify", verify)
    check_entry(entry)
    check_tensor("z", z, ndim=4, like=next(net.parameters()).detach(), finite=True)
    if noisy is not None:
        check_run_inputs(net, z, noisy)
    if not bool(flat.any()):
        raise InputError("mask: expected one that keeps a weight, got one that keeps none")
    z = ordinary(z)
    if backend != "reference":
        function, _ = make_function(net, z, mask, backend, verify=verify, entry=entry)
        if isinstance(function, RewrittenFunction):
            return function
    return _Dense(net, z, flat, entry)


def check_second_order(backend: str) -> str:
    """``backend``, if it can be differentiated twice.

    Raises:
        InputError: it cannot.
    """
    return check_choice("backend", backend, SECOND_ORDER)


def probe(seed: int, index: int, shape: torch.Size, like: Tensor) -> Tensor:
    """Independent signs +1 and -1 (Rademacher), the same on every device and in every dtype.

    Args:
        seed: in [0, 2^64).
        index: which of the seed's probes.
        shape: of the result.
        like: whose dtype and device it has.
    """
    bits = random_bits(seed, index, shape.numel(), stream=PROBE, device="cpu")
    return ((bits & 1) * 2 - 1).to(like).view(shape)


def check_seed(seed: int) -> int:
    """``seed``, if it is one."""
    return check_integer("seed", seed, minimum=0, below=2**64)


def dot(a: Tensor, b: Tensor) -> float:
    """Scalar product, summed in float64."""
    return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))
