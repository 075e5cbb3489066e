"""Derivatives of a network's loss or output in the flat vector of its weights, for the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from oes_fast._checks import check_flag
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, check_entry, entry_of
from oes_fast.errors import OESError
from oes_fast.flat import FlatLayout
from oes_fast.pipelines.functions import make_function, rewritten
from oes_fast.pipelines.inputs import check_run_inputs, ordinary
from oes_fast.pipelines.objective import Objective, evaluate, make_objective
from oes_fast.rewrite import sparsify


def checked_objective(net: nn.Module, z: Tensor, noisy: Tensor, options: Mapping[str, Any]) -> Objective:
    """What a score is of, after the arguments that every score takes are checked.

    Args:
        net: generator.
        z: input [1, C, ...].
        noisy: image [1, C', ...], or a measurement.
        options: forward, loss, weight and tv of :func:`oes_fast.train_sparse`.

    Raises:
        InputError: an argument does not fit, with its name.
    """
    check_run_inputs(net, z, noisy, forward=options["forward"])
    return make_objective(ordinary(noisy), **options)


def loss_gradient(
    net: nn.Module, z: Tensor, objective: Objective, *, entry: Entry | None, backend: str, verify: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of an objective in training mode, on the kernels of a backend.

    Args:
        net: generator; left alone.
        z: input [1, C, ...].
        objective: of the image.
        entry: which of several results is the image.
        backend: see :func:`oes_fast.pipelines.functions.make_function`.
        verify: compare the rewritten network with ``net`` first.

    Returns:
        (weights [n], gradient [n]).

    Raises:
        InputError: no such entry.
        OESError: the gradient is not finite.
    """
    check_flag("verify", verify)
    function, _ = make_function(net, ordinary(z), None, backend, verify=verify, entry=check_entry(entry))
    weights = function.initial_weights().requires_grad_()
    with torch.enable_grad():
        _, loss = evaluate(objective, function, weights, update_stats=False)
        (gradient,) = torch.autograd.grad(loss, weights)
    return weights.detach(), finite_scores("gradient", gradient.detach())


def differentiable(
    net: nn.Module, z: Tensor, backend: str, *, entry: Entry | None, verify: bool, twice: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as a function of its flat weights and a constant input, in the mode that it is in.

    Args:
        net: copied, and left alone.
        z: input [1, C, ...] of the shape that the function will see.
        backend: "reference" for the network as it is, any other for the rewritten network.
        entry: which of several results is the image.
        verify: compare the rewritten network with ``net`` first; where they differ, warn and take ``net``.
        twice: "auto" takes PyTorch operations, which can be differentiated more than once.

    Returns:
        Function of (weights [n], z).

    Raises:
        InputError: no such entry.
        BackendError: the backend cannot run here, or not in the network's dtype.
        TraceError: the network's code cannot be traced and the backend was named; "auto" warns and takes the
            network as it is.
    """
    check_entry(entry)

    def make(chosen: str) -> Callable[[Tensor, Tensor], Tensor]:
        module = sparsify(net, None, entry=entry, backend=chosen, verify=verify)
        module.plan(z)  # refuses here
        buffers = dict(module.dense_buffers())
        return lambda weights, z: module.evaluate(weights, z, buffers, update_stats=False)

    function, _ = rewritten(make, z, backend, auto="torch" if twice else "auto")
    if function is not None:
        return function
    copy = copy_network(net)
    layout = FlatLayout.of(net)

    def dense(weights: Tensor, z: Tensor) -> Tensor:
        # Copies, since training mode updates them.
        buffers = {name: buffer.clone() for name, buffer in copy.named_buffers()}
        output = functional_call(copy, (layout.views(weights), buffers), (z,))
        image: Tensor = entry_of(output, entry, of=type(copy).__name__)
        return image

    return dense


def finite_scores(what: str, tensor: Tensor) -> Tensor:
    """``tensor`` [n], or an :class:`OESError` that says of what it holds NaN or infinity."""
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise OESError(
            f"the {what} is NaN or infinite for {bad} of {tensor.numel()} weights: the network's weights may "
            "be too large, or its code has no derivative there, as a root at 0"
        )
    return tensor
