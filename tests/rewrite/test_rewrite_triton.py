"""The rewritten network and both pipelines on Triton kernels, under the interpreter or on a GPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from kernel_backends import INTERPRETED, device_of, require
from networks import masks, networks

import oes_fast as oes
from oes_fast.rewrite import sparsify
from oes_fast.rewrite.run.context import FusedLoss

pytestmark = [pytest.mark.device, pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")]


def problem(make_problem, **options):
    """A small problem in float32 whose norms and biases the mask keeps, so that little of it is dead."""
    p = make_problem(
        dtype=torch.float32, size=(16, 16), num_channels_down=(6,), filter_size_down=5, seed=3, **options
    )
    generator = torch.Generator().manual_seed(0)
    bits = [
        torch.rand(w.numel(), generator=generator) < (0.3 if w.ndim == 4 and w.shape[-1] > 1 else 0.9)
        for w in p.net.parameters()
    ]
    device = device_of("triton")
    net = p.net.to(device)
    return p._replace(
        net=net,
        mask=oes.Mask.from_flat(net, torch.cat(bits)),
        z=p.z.to(device),
        noisy=p.noisy.to(device),
        clean=p.clean.to(device),
    )


def compare(net, mask, z, tolerance):
    """Training step and evaluation against the same rewritten network in plain PyTorch."""
    target = torch.rand(net.train()(z).shape, generator=torch.Generator().manual_seed(1)).to(z.device)
    found = []
    for backend in ("triton", "torch"):
        module = sparsify(copy.deepcopy(net).train(), mask, backend=backend)
        fused_loss = FusedLoss(target)
        output = module.evaluate(
            module.weights, z, dict(module.dense_buffers()), update_stats=True, fused_loss=fused_loss
        )
        loss = ((output - target) ** 2).mean() if fused_loss.loss is None else fused_loss.loss
        (grad,) = torch.autograd.grad(loss, module.weights, allow_unused=True)
        grad = torch.zeros_like(module.weights) if grad is None else grad
        module.eval()
        with torch.no_grad():
            still = module(z)
        found.append(
            (output.detach(), loss.detach(), grad, still, *(b.float() for _, b in module.dense_buffers()))
        )
    for ours, theirs in zip(*found, strict=True):
        if theirs.numel():
            error = float((ours - theirs).abs().max())
            assert error <= tolerance * (1 + float(theirs.abs().max()))


def test_triton_runs_drawn_networks():
    require("triton")

    # Without shrinking, which under the interpreter takes minutes: the seed that fails is printed.
    @settings(
        max_examples=2 if INTERPRETED else 25,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def drawn(data):
        net, z = data.draw(networks())
        net, z = net.float().to(device_of("triton")), z.float().to(device_of("triton"))
        mask = oes.Mask.from_flat(net, data.draw(masks(net)))
        try:
            outputs = [net.train()(z), net.double()(z.double()).float()]
            net.float()
        except (RuntimeError, ValueError):
            assume(False)
        # Constant channels before a batch norm: 316 times the rounding, in either way.
        assume(torch.isfinite(outputs[0]).all() and (outputs[0] - outputs[1]).abs().max() < 1e-4)
        compare(net, mask, z, 3e-3)

    drawn()


def test_triton_trains_as_the_reference_does(make_problem):
    require("triton")
    p = problem(make_problem)
    runs = [
        oes.train_sparse(
            p.net,
            p.mask,
            p.z,
            p.noisy,
            steps=2,
            clean=p.clean,
            average=0.9,
            record_every=1,
            verify=False,
            backend=backend,
        )
        for backend in ("reference", "triton")
    ]
    assert runs[1].backend == "triton"
    np.testing.assert_allclose(runs[1].history.loss, runs[0].history.loss, rtol=2e-3)
    np.testing.assert_allclose(runs[1].history.psnr_average, runs[0].history.psnr_average, rtol=1e-3)
    torch.testing.assert_close(runs[1].output, runs[0].output, rtol=0, atol=2e-2)


def test_triton_searches_as_the_reference_does(make_problem):
    require("triton")
    p = problem(make_problem)
    runs = [
        oes.search_mask(
            p.net, p.z, p.noisy, density=0.5, steps=1, record_every=1, verify=False, backend=backend
        )
        for backend in ("reference", "triton")
    ]
    np.testing.assert_allclose(runs[1].history.loss, runs[0].history.loss, rtol=1e-3)
    assert (runs[0].mask.flat == runs[1].mask.flat).float().mean() > 0.9


def test_pipelines_on_triton_are_float32_alone(make_problem):
    require("triton")
    p = make_problem()
    with pytest.raises(oes.BackendError, match=r"triton.*does not have the operation"):
        oes.train_sparse(p.net, p.mask, p.z, p.noisy, steps=1, backend="triton")
    with pytest.raises(oes.BackendError, match="triton"):
        oes.search_mask(p.net, p.z, p.noisy, density=0.5, steps=1, backend="triton")
