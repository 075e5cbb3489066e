"""The rewritten network and both pipelines on Triton kernels, under the interpreter or on a GPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from kernel_backends import INTERPRETED, device_of, require
from networks import masks, networks
from torch import nn

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


def compare(net, mask, z, tolerance, *, verify=False):
    """Training step and evaluation against the same rewritten network in plain PyTorch."""
    target = torch.rand(net.train()(z).shape, generator=torch.Generator().manual_seed(1)).to(z.device)
    found = []
    for backend in ("triton", "torch"):
        module = sparsify(copy.deepcopy(net).train(), mask, backend=backend, verify=verify)
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


def test_triton_runs_the_published_kind_of_network(make_problem):
    require("triton")
    p = problem(make_problem)
    compare(p.net, p.mask, p.z, 1e-5)
    compare(p.net, None, p.z, 1e-5)
    module = sparsify(p.net, p.mask, backend="triton", verify=False)
    text = module.explain((16, 16))
    for kernel in ("sparse_conv2d", "sparse_up_conv2d", "batch_norm_act", "output_head", "a stage beside it"):
        assert kernel in text
    assert "chain" not in text


class Joined(nn.Module):
    """Sums, concatenations and layers of other kinds around those that the kernels take."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4))
        self.down = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, 2, padding=1), nn.GroupNorm(2, 4), nn.PReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4), nn.GELU())
        self.last = nn.Sequential(
            nn.Conv2d(8, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True), nn.SiLU(), nn.Conv2d(4, 2, 1)
        )

    def forward(self, z):
        x = self.first(z)
        return torch.sigmoid(self.last(torch.cat([x, x + self.up(self.down(x))], 1)))


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_triton_runs_joins_and_other_layers(density):
    require("triton")
    torch.manual_seed(0)
    device = device_of("triton")
    net, z = Joined().to(device), torch.rand(1, 3, 8, 10).to(device)
    keep = [
        torch.rand(w.shape, generator=torch.Generator().manual_seed(2)) < (density if w.ndim == 4 else 2)
        for w in net.parameters()
    ]
    mask = oes.Mask.from_flat(net, torch.cat([k.flatten() for k in keep]))
    compare(net, mask, z, 1e-5, verify=density < 1)


@pytest.mark.parametrize("keeps", [False, True])
def test_masks_that_keep_nothing_or_everything_on_triton(keeps):
    require("triton")
    torch.manual_seed(0)
    device = device_of("triton")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Conv2d(4, 2, 1), nn.Sigmoid())
    net, z = net.to(device), torch.rand(1, 3, 8, 7).to(device)
    numel = sum(w.numel() for w in net.parameters())
    compare(net, oes.Mask.from_flat(net, torch.full((numel,), keeps)), z, 1e-5)


def test_triton_takes_the_loss_along_unless_it_has_weights(make_problem):
    require("triton")
    p = problem(make_problem)
    for weight in (None, torch.rand(p.noisy.shape, generator=torch.Generator().manual_seed(1))):
        weight = weight if weight is None else weight.to(p.noisy.device)
        fused = FusedLoss(p.noisy, weight)
        module = sparsify(p.net, p.mask, backend="triton", verify=False)
        image = module.evaluate(
            module.weights, p.z, dict(module.dense_buffers()), update_stats=False, fused_loss=fused
        )
        assert (fused.loss is None) == (weight is not None)
        if fused.loss is not None:
            torch.testing.assert_close(fused.loss, F.mse_loss(image, p.noisy))


def test_a_module_moved_off_triton_runs_on_pytorch():
    require("triton")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Sigmoid())
    fast = sparsify(net.to(device_of("triton")), backend="triton", verify=False).to("meta")
    assert fast(torch.zeros(1, 3, 8, 8, device="meta")).device.type == "meta"


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


def known_pixels(noisy):
    return (torch.arange(noisy.numel()).view(noisy.shape) % 3 > 0).to(noisy)


@pytest.mark.parametrize(
    "options",
    [
        lambda p: {"input_noise": 0.05, "seed": 3},
        lambda p: {"weight": known_pixels(p.noisy)},
        lambda p: {"optimizer": lambda weights: torch.optim.SGD(weights, lr=0.5, momentum=0.9)},
    ],
    ids=["noise on the input", "weight", "optimizer"],
)
def test_other_trainings_on_triton_are_those_of_the_reference(make_problem, options):
    require("triton")
    p = problem(make_problem)
    runs = [
        oes.train_sparse(
            p.net, p.mask, p.z, p.noisy, steps=2, record_every=1, verify=False, backend=backend, **options(p)
        )
        for backend in ("reference", "triton")
    ]
    np.testing.assert_allclose(runs[1].history.loss, runs[0].history.loss, rtol=2e-3)
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


def test_triton_is_float32_alone(make_problem):
    require("triton")
    p = make_problem()
    with pytest.raises(oes.BackendError, match=r"triton.*does not have the operation"):
        sparsify(p.net, p.mask, backend="triton")
    with pytest.raises(oes.BackendError, match=r"triton.*does not have the operation"):
        oes.train_sparse(p.net, p.mask, p.z, p.noisy, steps=1, backend="triton")
    with pytest.raises(oes.BackendError, match="triton"):
        oes.search_mask(p.net, p.z, p.noisy, density=0.5, steps=1, backend="triton")
