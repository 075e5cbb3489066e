"""Batch normalisation with activation against PyTorch's and against the formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import KERNELS, device_of, dtypes_of, examples_of, require
from torch import nn

import oes_fast as oes
from oes_fast import reference
from oes_fast.functional import batch_norm_act
from oes_fast.ops import _library

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device]

ACTIVATIONS = {
    "none": lambda y: y,
    "leaky_relu": lambda y: torch.where(y > 0, y, 0.2 * y),
    "elu": lambda y: torch.where(y > 0, y, 0.2 * (torch.exp(y.clamp(max=0)) - 1)),
    "silu": lambda y: y / (1 + torch.exp(-y)),
}
BACKENDS = list(KERNELS)
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def formula(x, weight, bias, activation, eps=1e-5):
    mean = x.mean((0, 2, 3), keepdim=True)
    y = (x - mean) / (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + eps) ** 0.5
    y = y if weight is None else y * weight[:, None, None]
    return ACTIVATIONS[activation](y if bias is None else y + bias[:, None, None])


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(2, 6)),
    activation=st.sampled_from([*ACTIVATIONS]),
    weight=st.booleans(),
    bias=st.booleans(),
)
def test_formula_and_gradients(shape, activation, weight, bias):
    x = draw(*shape).requires_grad_()
    w = draw(shape[1], seed=1).requires_grad_() if weight else None
    b = draw(shape[1], seed=2).requires_grad_() if bias else None
    y, expected = batch_norm_act(x, w, b, activation=activation), formula(x, w, b, activation)
    torch.testing.assert_close(y, expected)
    leaves = [t for t in (x, w, b) if t is not None]
    upstream = draw(*shape, seed=3)
    got, want = (torch.autograd.grad(value, leaves, upstream) for value in (y, expected))
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-6, atol=1e-9)


@each_activation
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(activation, training):
    leaves = [t.requires_grad_() for t in (draw(2, 3, 4, 3), draw(3, seed=1), draw(3, seed=2))]
    statistics = [draw(3, seed=4), draw(3, seed=5).square() + 0.1]

    def function(x, weight, bias):
        running = [s.clone() for s in statistics]
        return batch_norm_act(x, weight, bias, *running, training=training, activation=activation)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_running_statistics_are_those_of_torch(momentum):
    layer = nn.BatchNorm2d(3, momentum=momentum).double()
    running = [torch.zeros(3).double(), torch.ones(3).double()]
    for step in range(4):
        x = draw(2, 3, 4, 5, seed=step) * 3 + step
        expected = nn.functional.leaky_relu(layer(x), 0.2)
        y = batch_norm_act(x, layer.weight, layer.bias, *running, momentum=momentum)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(running, [layer.running_mean, layer.running_var])
    x = draw(2, 3, 4, 5)
    y = batch_norm_act(x, layer.weight, layer.bias, *running, training=False, slope=0.3)
    torch.testing.assert_close(y, nn.functional.leaky_relu(layer.eval()(x), 0.3))
    torch.testing.assert_close(running, [layer.running_mean, layer.running_var])  # not moved


def test_running_variance_is_unbiased():
    x, mean, var = draw(1, 2, 2, 2), torch.zeros(2).double(), torch.zeros(2).double()
    batch_norm_act(x, None, None, mean, var, momentum=1.0)
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=1))
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))


@each_activation
def test_dead_channels_are_constant_and_pass_no_gradient(activation):
    """Gamma 0 makes the activation of beta; only beta learns from there on."""
    x = draw(1, 3, 4, 4).requires_grad_()
    weight = torch.tensor([0.0, 1.0, 0.0]).double().requires_grad_()
    bias = torch.tensor([0.0, 0.5, -0.7]).double().requires_grad_()
    y = batch_norm_act(x, weight, bias, activation=activation)
    for channel in (0, 2):
        expected = ACTIVATIONS[activation](bias[channel])
        torch.testing.assert_close(y[0, channel], expected.expand(4, 4))
    y.mul(draw(1, 3, 4, 4, seed=1)).sum().backward()
    assert (x.grad[:, [0, 2]] == 0).all()
    assert (x.grad[:, 1] != 0).all()
    assert bias.grad[2] != 0


def test_constant_channels_stay_finite():
    x = torch.full((1, 2, 3, 3), 7.0).double().requires_grad_()
    y = batch_norm_act(x, torch.ones(2).double(), torch.tensor([0.3, -0.3]).double())
    torch.testing.assert_close(y[0, :, 0, 0], torch.tensor([0.3, -0.06]).double())
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_of_memory(dtype):
    x = draw(2, 3, 4, 5, dtype=dtype)
    expected = batch_norm_act(x)
    assert expected.dtype == dtype
    for other in (x.to(memory_format=torch.channels_last), torch.stack([x, x], -1)[..., 0], x.mT.clone().mT):
        torch.testing.assert_close(batch_norm_act(other), expected)
    one = x[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(batch_norm_act(one), batch_norm_act(one.clone()))


def test_inputs_stay_as_they_are():
    x = draw(1, 3, 4, 4)
    before = x.clone()
    batch_norm_act(x, activation="leaky_relu")
    assert torch.equal(x, before)


V, VAR = torch.zeros(3).double(), torch.ones(3).double()
BAD = [
    ("x", {"x": draw(3, 4, 4)}),
    ("x", {"x": draw(1, 3, 1, 1)}),
    ("x", {"x": draw(0, 3, 4, 4)}),
    ("x", {"x": draw(1, 3, 4, 4).half()}),
    ("weight", {"weight": torch.ones(2).double()}),
    ("weight", {"weight": torch.ones(3)}),
    ("bias", {"bias": torch.ones(3, 1).double()}),
    ("running_mean", {"running_mean": V[:2], "running_var": VAR}),
    ("running_var", {"running_mean": V, "running_var": VAR.float()}),
    ("running_mean, running_var", {"training": False}),
    ("running_mean, running_var", {"running_mean": V}),
    ("running_mean, running_var", {"running_var": VAR}),
    ("activation", {"activation": "relu"}),
    ("momentum", {"momentum": 1.1}),
    ("momentum", {"momentum": None}),
    ("eps", {"eps": -1e-5}),
    ("pad", {"pad": 4}),
    ("pad", {"pad": -1}),
    ("slope", {"slope": torch.nan}),
    ("slope", {"slope": "0.2"}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        batch_norm_act(**({"x": draw(1, 3, 4, 4)} | changes))


def check(
    backend, dtype, shape, *, activation="leaky_relu", pad=0, training=True, weight=True, bias=True, mean=0.0
):
    """Result, running statistics and gradients against the reference in float64."""
    device = device_of(backend)
    x = draw(*shape) + mean
    w = draw(shape[1], seed=1) if weight else None
    b = draw(shape[1], seed=2) if bias else None
    running = [draw(shape[1], seed=4), draw(shape[1], seed=5).square() + 0.1]
    options = {"activation": activation, "pad": pad, "training": training, "momentum": 0.3}
    found = []
    for each, kind, place in ((backend, dtype, device), ("reference", torch.float64, "cpu")):
        # Both start from the rounded numbers.
        leaves = [None if t is None else t.to(dtype).to(kind).to(place).requires_grad_() for t in (x, w, b)]
        statistics = [s.to(dtype).to(kind).to(place) for s in running]
        torch.use_deterministic_algorithms(True)  # torch.empty is NaN then
        try:
            if each == "reference":
                y = reference.batch_norm_act(*leaves, *statistics, **options)
            else:
                y = batch_norm_act(*leaves, *statistics, backend=each, **options)
            upstream = draw(*y.shape, seed=3).to(dtype).to(kind).to(place)
            grads = torch.autograd.grad(y, [t for t in leaves if t is not None], upstream)
        finally:
            torch.use_deterministic_algorithms(False)
        found.append([t.detach().cpu() for t in (y, *statistics, *grads)])
    for ours, expected in zip(*found, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == expected.shape
        assert torch.isfinite(ours).all()
        error = float((ours.double() - expected).abs().max())
        assert error <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


CASES = [
    ((1, 3, 9, 13), {}),
    ((2, 2, 5, 70), {"pad": 2}),
    ((3, 1, 4, 4), {"pad": 3, "activation": "silu"}),
    ((1, 2, 1, 9), {"activation": "elu", "weight": False}),
    ((1, 2, 70, 70), {"activation": "none", "bias": False, "pad": 1}),
    ((2, 2, 3, 4), {"weight": False, "bias": False}),
    ((1, 2, 6, 5), {"training": False, "pad": 2}),
    ((1, 3, 6, 5), {"training": False, "activation": "silu"}),
    ((2, 2, 33, 65), {"mean": 3.0, "activation": "elu", "pad": 2}),
    ((1, 2, 70, 61), {"training": False, "pad": 2}),  # too large for one program a channel
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_kernels_match_the_reference(backend, shape, options):
    require(backend)
    for dtype in dtypes_of(backend):
        check(backend, dtype, shape, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_on_drawn_shapes(backend):
    require(backend)

    @settings(max_examples=examples_of(backend, 30), deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(2, 9), st.integers(2, 70)),
        activation=st.sampled_from([*ACTIVATIONS]),
        pad=st.integers(0, 1),
        training=st.booleans(),
        dtype=st.sampled_from(dtypes_of(backend)),
    )
    def drawn(shape, activation, pad, training, dtype):
        check(backend, dtype, shape, activation=activation, pad=pad, training=training)

    drawn()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_keep_the_variance_of_a_channel_far_from_zero(backend):
    require(backend)
    x = (draw(1, 2, 40, 70) + 1000).float().to(device_of(backend))
    y = batch_norm_act(x, activation="none", backend=backend)
    expected = formula(x.cpu().double(), None, None, "none")
    assert float((y.cpu().double() - expected).abs().max()) < 2e-4  # x itself has steps of 6e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_on_dead_and_constant_channels(backend):
    require(backend)
    device = device_of(backend)
    x = draw(1, 3, 4, 5, dtype=torch.float32)
    x[:, 2] = 7.0
    x = x.to(device).requires_grad_()
    weight = torch.tensor([0.0, 1.0, 1.0]).to(device).requires_grad_()
    bias = torch.tensor([-0.7, 0.5, 0.3]).to(device).requires_grad_()
    y = batch_norm_act(x, weight, bias, backend=backend)
    torch.testing.assert_close(y[0, 0], torch.full((4, 5), -0.14).to(device))
    torch.testing.assert_close(y[0, 2], torch.full((4, 5), 0.3).to(device))
    y.mul(draw(1, 3, 4, 5, seed=1).float().to(device)).sum().backward()
    assert (x.grad[:, 0] == 0).all()
    assert (x.grad[:, 1] != 0).all()
    assert torch.isfinite(x.grad).all()
    assert bias.grad.all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_give_only_the_gradients_asked_for(backend):
    require(backend)
    device = device_of(backend)
    leaves = [t.float().to(device) for t in (draw(1, 3, 4, 5), draw(3, seed=1), draw(3, seed=2))]
    upstream = draw(1, 3, 8, 9, seed=3).float().to(device)
    both = [t.clone().requires_grad_() for t in leaves]
    batch_norm_act(*both, pad=2, backend=backend).backward(upstream)
    for index in range(3):
        some = [t.clone().requires_grad_(i == index) for i, t in enumerate(leaves)]
        batch_norm_act(*some, pad=2, backend=backend).backward(upstream)
        torch.testing.assert_close(some[index].grad, both[index].grad)
        assert all(t.grad is None for i, t in enumerate(some) if i != index)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_on_strided_and_expanded_inputs(backend):
    require(backend)
    x = draw(2, 3, 4, 10, dtype=torch.float32).to(device_of(backend))
    for other in (x[..., ::2], x[:1].expand(2, -1, -1, -1), x.to(memory_format=torch.channels_last)):
        leaf = other.detach().requires_grad_()
        y = batch_norm_act(leaf, backend=backend)
        torch.testing.assert_close(y, batch_norm_act(other.contiguous(), backend=backend))
        y.backward(torch.ones((), device=x.device).expand(y.shape))
        assert torch.isfinite(leaf.grad).all()
    running = torch.zeros(6, device=x.device)[::2], torch.ones(6, device=x.device)[::2]
    batch_norm_act(x, None, None, *running, backend=backend)
    torch.testing.assert_close(running[0], x.mean((0, 2, 3)) * 0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [False, True])
def test_registration(backend, given):
    require(backend)
    device = device_of(backend)
    x, w, b = (t.float().to(device) for t in (draw(1, 2, 4, 5), draw(2, seed=1), draw(2, seed=2)))
    mean, var = b.clone(), b.square() + 1
    statistics = (mean, var) if given else (None, None)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    numbers = (1e-5, 1, 0.2, 1)
    torch.library.opcheck(_library.kernel("batch_norm_act", backend), (*leaves, *statistics, *numbers))
    grad = draw(1, 2, 6, 7, seed=3).float().to(device)
    torch.library.opcheck(
        _library.kernel("batch_norm_act_backward", backend),
        (grad, x, w, b, mean, var, *numbers, not given, True, True, True),
    )


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_padding_is_reflection_of_the_result(activation):
    x = draw(2, 3, 4, 5)
    padded = nn.functional.pad(batch_norm_act(x, activation=activation), (2, 2, 2, 2), mode="reflect")
    assert torch.equal(batch_norm_act(x, activation=activation, pad=2), padded)
