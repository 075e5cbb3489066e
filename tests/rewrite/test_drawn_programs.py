"""Drawn networks whose tensors are shared, changed in place or unused: the dense results, or a refusal."""

from __future__ import annotations

import pytest
import torch
from drawn_programs import Program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import oes_fast as oes
from oes_fast.copies import copy_network
from oes_fast.flat import flatten, unflatten_
from oes_fast.rewrite import ir

BACKENDS = [name for name in ("torch", "cpu") if oes.backends()[name]]
TOLERANCE = {"rtol": 1e-7, "atol": 1e-8}


def agrees(seed: int, density: float, backend: str) -> bool:
    """Whether the rewritten network is not refused; then its results are the dense network's."""
    net = Program(seed).double()
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(1, 3, *net.size, dtype=torch.float64, generator=generator)
    keep = torch.rand(flatten(net).numel(), generator=generator) < density
    dense = copy_network(net)
    unflatten_(dense, flatten(net) * keep)
    try:
        image = dense(z.clone())
        target = torch.linspace(0, 1, image.numel(), dtype=z.dtype).view_as(image)
        grads = torch.autograd.grad(
            (image - target).square().mean(), list(dense.parameters()), materialize_grads=True
        )
    except RuntimeError:  # the network changes what its gradient needs
        return False
    fast = oes.sparsify(net, oes.Mask.from_flat(net, keep), backend=backend, verify=False)
    try:
        got = fast(z)
    except oes.TraceError as error:
        if "in place" in str(error):
            return False
        raise
    torch.testing.assert_close(got, image, **TOLERANCE)
    (grad,) = torch.autograd.grad((got - target).square().mean(), fast.weights, materialize_grads=True)
    torch.testing.assert_close(grad, torch.cat([g.flatten() for g in grads])[keep], **TOLERANCE)
    channels: dict[str, list[torch.Tensor]] = {}  # those of a masked norm that reach an output
    plan = fast.plan(z)
    for node in plan.graph:
        if isinstance(node.stage, ir.Norm) and node.stage.tracks:
            alive = plan.alive[node]
            for name in (node.stage.mean, node.stage.var):
                reach = torch.cat([alive.varying, alive.tracked]) + node.stage.first
                channels.setdefault(str(name), []).append(reach)
    ours = dict(fast.to_dense().named_buffers())
    for name, buffer in dense.named_buffers():
        at = torch.cat(channels[name]) if name in channels else ...
        torch.testing.assert_close(ours[name][at], buffer[at], **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        torch.testing.assert_close(fast.eval()(z), dense.eval()(z.clone()), **TOLERANCE)
    return True


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 0.1, 0.4, 0.7, 1.0]))
def test_as_in_the_dense_network(backend: str, seed: int, density: float) -> None:
    agrees(seed, density, backend)
