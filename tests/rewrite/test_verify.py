"""The rewritten network is held against the dense one: planted faults are found, sound networks pass."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import warnings
from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_backends import EMULATED
from networks import masks, networks
from torch import nn
from torch.utils.checkpoint import checkpoint

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import ir, verify, verify_problem
from oes_fast.rewrite.run import torch_ops

SPARSIFY = importlib.import_module("oes_fast.rewrite.module")  # whose name in the package is the function's
BACKENDS = [name for name in ("torch", "cpu", *EMULATED) if oes.backends()[name]]


def small_net(*, bias=True, sigmoid=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(2),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ELU(),
        nn.Conv2d(6, 3, 1, bias=bias),
        nn.Sigmoid() if sigmoid else nn.Identity(),
    )


def mask_of(net, dropped=()):
    """All weights but those named: (parameter, index)."""
    keep = torch.ones(FlatLayout.of(net).numel, dtype=torch.bool)
    views = FlatLayout.of(net).views(keep)
    for name, index in dropped:
        views[name][index] = False
    return oes.Mask.from_flat(net, keep)


def problem(size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    z, noisy = (torch.rand(1, c, size, size, generator=generator) for c in (4, 3))
    return z.to(dtype), noisy.to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_sound_networks_pass(backend, dtype, training):
    net = small_net(sigmoid=True).to(dtype).train(training)
    mask = mask_of(net, [("2.weight", slice(0, 3)), ("5.weight", 1), ("6.weight", 2), ("6.bias", 3)])
    z, _ = problem(dtype=dtype)
    before = torch.get_rng_state()
    for each in (mask, None):
        assert oes.sparsify(net, each, backend=backend)(z).shape == (1, 3, 16, 16)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_alarm_for_any_layer(data):
    net, z = data.draw(networks())
    mask = oes.Mask.from_flat(net, data.draw(masks(net)))
    try:
        net.train(data.draw(st.booleans()))(z)
    except (RuntimeError, ValueError):  # the layers do not take an image of this size
        assume(False)
    for backend in BACKENDS:
        oes.sparsify(net.float(), mask, backend=backend)(z.float())


def test_a_network_that_drops_out_is_given_the_same_numbers():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Dropout2d(0.5), nn.ReLU(), nn.Conv2d(8, 3, 1))
    before = torch.get_rng_state()
    fast = oes.sparsify(net)
    fast.plan(problem()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_code_that_computes_in_float32_is_no_fault():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.b(self.a(x).float().to(x.dtype))

    oes.sparsify(Narrow())(problem()[0])


def replaced(graph, kind, **fields):
    """Change the first stage of a kind."""
    for node in graph.nodes:
        conv = getattr(node.stage, "conv", None)
        if isinstance(node.stage, kind):
            node.stage = dataclasses.replace(node.stage, **fields)
            return
        if isinstance(conv, kind):
            node.stage = dataclasses.replace(node.stage, conv=dataclasses.replace(conv, **fields))
            return
    raise AssertionError(kind)


def norms_replaced(graph, **fields):
    for node in graph.nodes:
        if isinstance(node.stage, ir.Norm):
            node.stage = dataclasses.replace(node.stage, **fields)


def last_bias_dropped(graph):
    (node,) = (n for n in graph.nodes if isinstance(n.stage, ir.Conv) and n.stage.channels[1] == 3)
    node.stage = dataclasses.replace(node.stage, bias=None)


FAULTS = {
    "a border of another kind": lambda g: replaced(g, ir.Pad, mode="circular"),
    "a scale forgotten": lambda g: replaced(g, ir.Conv, scale=1.0),
    "an activation's slope": lambda g: norms_replaced(g, act=ir.Act("leaky_relu", 0.1)),
    "a running statistic": lambda g: norms_replaced(g, momentum=0.2),
    "a bias": last_bias_dropped,
}


# Faults of the graph are the same to every engine: two on each, one of them in what engines count themselves.
FOUND = [("torch", fault) for fault in FAULTS]
FOUND += [(backend, fault) for backend in BACKENDS[1:] for fault in ("a running statistic", "a bias")]


@pytest.mark.parametrize(("backend", "fault"), FOUND)
def test_planted_faults_are_found(monkeypatch, fault, backend):
    right = SPARSIFY.rewritten

    def wrong(net, z, **options):
        graph = right(net, z, **options)
        FAULTS[fault](graph)
        return graph

    monkeypatch.setattr(SPARSIFY, "rewritten", wrong)
    net, (z, noisy) = small_net(), problem()
    mask = mask_of(net)
    with pytest.raises(oes.VerificationError, match="Sequential: rewritten, it computes something else"):
        oes.sparsify(net, mask, backend=backend).train()(z)
    oes.sparsify(net, mask, backend=backend, verify=False).train()(z)
    expected = oes.train_sparse(net, mask, z, noisy, steps=2, backend="reference", record_every=1)
    with pytest.warns(oes.OESWarning, match=r"something else.*on the reference path"):
        fit = oes.train_sparse(net, mask, z, noisy, steps=2, backend=backend, record_every=1)
    assert fit.backend == "reference"
    assert fit.history.loss == expected.history.loss
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.OESWarning)
        assert (
            oes.train_sparse(net, mask, z, noisy, steps=1, backend=backend, verify=False).backend == backend
        )


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.2), nn.ReLU(), nn.ELU(0.5)], ids=str)
def test_the_slope_at_exactly_zero_is_checked(monkeypatch, act):
    def wrong(x, activation, *, fresh=False):
        below = {"leaky_relu": activation.value * x, "relu": 0 * x, "elu": activation.value * torch.expm1(x)}
        return torch.where(x < 0, below[activation.kind], x)

    monkeypatch.setattr(torch_ops, "activate", wrong)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), act, nn.Conv2d(8, 3, 1))
    mask = mask_of(net, [("1.weight", 0)])
    with pytest.raises(oes.VerificationError, match=r"gradient .* of 1.bias .*the backward pass of 1.bias"):
        oes.sparsify(net, mask, backend="torch").train()(problem()[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_of_some_channels_is_found(monkeypatch, backend):
    """A loss taken along with the last layer that leaves an output channel out."""
    net = small_net(bias=False)
    mask = mask_of(net, [("8.weight", 1)])
    evaluate = oes.SparseGenerator.evaluate

    def wrong(self, weights, z, buffers, *, update_stats, fused_loss=None, noise=None):
        output = evaluate(self, weights, z, buffers, update_stats=update_stats, noise=noise)
        if fused_loss is not None:
            fused_loss.loss = nn.functional.mse_loss(output[:, ::2], fused_loss.target[:, ::2])
        return output

    monkeypatch.setattr(oes.SparseGenerator, "evaluate", wrong)
    with pytest.raises(oes.VerificationError, match=r"loss .* They part at the loss of the last stage"):
        oes.sparsify(net, mask, backend=backend).train()(problem()[0])


def test_the_stage_is_named(monkeypatch):
    right = SPARSIFY.rewritten

    def wrong(net, z, **options):
        graph = right(net, z, **options)
        norms = [node for node in graph.nodes if isinstance(node.stage, ir.Norm)]
        norms[-1].stage = dataclasses.replace(norms[-1].stage, eps=0.5)
        return graph

    monkeypatch.setattr(SPARSIFY, "rewritten", wrong)
    with pytest.raises(oes.VerificationError, match="They part at stage 6"):
        oes.sparsify(small_net()).train()(problem()[0])


def test_without_memory_for_float64(monkeypatch):
    monkeypatch.setattr(verify_problem, "available_memory", lambda device: 0.0)
    monkeypatch.setattr(verify, "TIGHT", None)
    net, (z, _) = small_net(), problem()
    oes.sparsify(net, mask_of(net)).train()(z)


def test_a_plan_that_failed_is_not_used_afterwards(monkeypatch):
    monkeypatch.setattr(verify, "TIGHT", verify.Tolerance(-1.0, -1.0))
    fast = oes.sparsify(small_net()).train()
    for _ in range(2):
        with pytest.raises(oes.VerificationError):
            fast(problem()[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_default_device_of_the_caller_does_not_matter(backend):
    net, (z, _) = small_net(), problem()
    expected = oes.sparsify(net, mask_of(net), backend=backend).train()(z)
    fast = oes.sparsify(net, mask_of(net), backend=backend).train()
    with torch.device("meta"):
        found = fast(z)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_dropout_on_the_input_draws_in_the_dense_order():
    net = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 3, 3, padding=1))
    oes.sparsify(net).train()(problem()[0])


class Own(nn.Module):
    """A network whose own code does what a trace cannot see."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(12, 3, 1), code
        self.kept, self.generator = {}, torch.Generator().manual_seed(0)

    def forward(self, x):
        h = self.a(x)
        return self.b(self.code(self, torch.cat([h, x], 1)))


def into_a_fresh_tensor(net, h):
    out = torch.zeros(h.shape, dtype=h.dtype)
    out[:, :8] = h[:, :8]
    return out


def counted(net, h):
    net.kept["calls"] = net.kept.get("calls", 0) + 1
    return h * net.kept["calls"]


def cached(net, h):
    if "first" not in net.kept:
        net.kept["first"] = True
        return h
    return 2 * h


UNSEEN = {
    "assignment into a fresh tensor": into_a_fresh_tensor,
    "in place, by the name of an operator": lambda net, h: (
        torch.ops.aten.mul_.Tensor(torch.ones(1, 12, 1, 1).to(h.dtype), h.detach().mean()) * h
    ),
    "isinstance": lambda net, h: 2 * h if isinstance(h, torch.Tensor) else h,
    "is_tensor": lambda net, h: 2 * h if torch.is_tensor(h) else h,
    "grad mode": lambda net, h: 2 * h if torch.is_grad_enabled() else h,
    "a counter in a dictionary": counted,
    "a cache": cached,
    "a generator of its own": lambda net, h: h * torch.rand(1, generator=net.generator).item(),
}


@pytest.mark.parametrize("construct", UNSEEN)
def test_what_a_trace_cannot_see_is_found_where_it_is_not_refused(monkeypatch, construct):
    """The refusals switched off, one by one what they are for comes through the trace wrong."""
    trace = importlib.import_module("oes_fast.rewrite.tracing.trace")
    convert = importlib.import_module("oes_fast.rewrite.tracing.convert")
    monkeypatch.setattr(trace, "check_recorded", lambda *_: None)
    monkeypatch.setattr(trace, "refuse_side_effects", lambda net: nullcontext())
    monkeypatch.setattr(trace, "isinstance_of_traced", lambda *_: nullcontext())
    monkeypatch.setattr(convert.Converter, "_refuse_in_place", lambda *_: None)
    net, (z, _) = Own(UNSEEN[construct]), problem()
    with pytest.raises(oes.VerificationError, match="Own: rewritten, it computes something else"):
        oes.sparsify(net).train()(z)


def test_rounding_of_the_dtype_itself_is_no_fault():
    """Where the dense network is as far from float64 in float32: at z = 0 for gradients, or by overflow."""
    net = small_net()
    mask = mask_of(net, [("2.weight", slice(0, 3)), ("6.weight", 2)])
    oes.sparsify(net, mask).train()(torch.zeros(1, 4, 16, 16))
    deep = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(10)))
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter *= 1e5
    assert not oes.sparsify(deep, mask_of(deep)).train()(problem()[0]).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_that_are_counted_twice_are_no_secret(backend):
    """PyTorch's checkpoint runs a batch norm again in the backward pass, which counts the batch again."""

    class Checkpointed(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.body, self.out = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), norm), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.out(checkpoint(self.body, x, use_reentrant=False))

    z, noisy = problem(dtype=torch.float64)
    with pytest.raises(oes.VerificationError, match=r"body.1.running_mean"):
        oes.sparsify(Checkpointed(nn.BatchNorm2d(8)).double(), backend=backend).train()(z)
    net = Checkpointed(nn.GroupNorm(2, 8)).double()
    mask = mask_of(net, [("body.0.weight", slice(0, 4))])
    losses = [
        oes.train_sparse(net, mask, z, noisy, steps=5, backend=each, record_every=1).history.loss
        for each in ("reference", backend)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    dense = oes.sparsify(net, mask, verify=False).to_dense().train()
    optimizer = torch.optim.Adam(dense.parameters(), lr=1e-2)
    kept = FlatLayout.of(net).views(mask.flat)
    for expected in losses[0]:
        loss = nn.functional.mse_loss(dense(z), noisy)
        assert expected == pytest.approx(float(loss.detach()), rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in dense.named_parameters():
            parameter.grad *= kept[name]
        optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_dtype_takes_the_networks_own_code_along(backend):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    net, (z, _) = Plain(), problem()
    fast = oes.sparsify(net, mask_of(net), backend=backend)
    for _ in range(2):
        torch.testing.assert_close(fast.double()(z.double()), copy.deepcopy(net).double()(z.double()))
        torch.testing.assert_close(fast.float()(z), net(z))
